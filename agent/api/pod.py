"""The Pod API: a pod, what a user asks of a node (`agent.api.podspec`) and what the node answers (status).

Source: k8s.io/api/core/v1/types.go (API reference v1.37).
"""

from __future__ import annotations

from agent.api.meta import Condition, Object, Quantities, Struct, Time
from agent.api.podspec import PodSpec, ResourceRequirements


class ContainerStateWaiting(Struct, frozen=True, kw_only=True):
    reason: str = ""
    message: str = ""


class ContainerStateRunning(Struct, frozen=True, kw_only=True):
    started_at: Time | None = None


class ContainerStateTerminated(Struct, omit_defaults=False, frozen=True, kw_only=True):
    """`exit_code` and the times are always written, as kubectl expects them."""

    exit_code: int = 0
    signal: int = 0
    reason: str = ""
    message: str = ""
    started_at: Time | None = None
    finished_at: Time | None = None
    container_id: str = ""


class ContainerState(Struct, frozen=True, kw_only=True):
    """At most one is set; none means waiting."""

    waiting: ContainerStateWaiting | None = None
    running: ContainerStateRunning | None = None
    terminated: ContainerStateTerminated | None = None


class VolumeMountStatus(Struct, frozen=True, kw_only=True):
    name: str = ""
    mount_path: str = ""
    read_only: bool = False
    recursive_read_only: str | None = None


class LinuxContainerUser(Struct, frozen=True, kw_only=True):
    uid: int = 0
    gid: int = 0
    supplemental_groups: tuple[int, ...] = ()


class ContainerUser(Struct, frozen=True, kw_only=True):
    linux: LinuxContainerUser | None = None


class ContainerStatus(Struct, frozen=True, kw_only=True):
    name: str = ""
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()
    ready: bool = False
    restart_count: int = 0
    image: str = ""
    image_id: str = ""
    container_id: str = ""
    started: bool | None = None
    allocated_resources: Quantities = {}
    resources: ResourceRequirements | None = None
    volume_mounts: tuple[VolumeMountStatus, ...] = ()
    user: ContainerUser | None = None
    stop_signal: str | None = None


class PodIP(Struct, frozen=True, kw_only=True):
    """An address of the pod (`podIPs`) or of its node (`hostIPs`)."""

    ip: str = ""


class PodStatus(Struct, frozen=True, kw_only=True):
    observed_generation: int = 0
    phase: str = ""
    conditions: tuple[Condition, ...] = ()
    message: str = ""
    reason: str = ""
    nominated_node_name: str = ""
    host_ip: str = ""
    host_ips: tuple[PodIP, ...] = ()
    pod_ip: str = ""
    pod_ips: tuple[PodIP, ...] = ()
    start_time: Time | None = None
    init_container_statuses: tuple[ContainerStatus, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    ephemeral_container_statuses: tuple[ContainerStatus, ...] = ()
    qos_class: str = ""
    resize: str = ""
    allocated_resources: Quantities = {}
    resources: ResourceRequirements | None = None


class Pod(Object, frozen=True, kw_only=True):
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()
