"""What the pods component needs from the rest of the agent, as narrow protocols.

The real ones are ProbeManager, VolumeManager, EventRecorder, Runtime and the informers; tests hand in fakes
that behave. One `Ports` value travels through workers and executors instead of a dozen arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent.api.meta import ObjectReference
from agent.api.structs import Container, Pod, Service
from agent.devices.grants import Grants
from agent.pods.facts import ContainerFact, SandboxFact
from agent.pods.images import ImagePuller
from agent.pods.metrics import PodMetrics
from agent.pods.observer import Observer
from agent.pods.runtime import ExecResult
from agent.pods.settings import PodSettings
from agent.pods.timeline import Timelines
from agent.pods.user_namespaces import UserNamespaces
from agent.resources.pod_cgroups import PodCgroups
from agent.volumes.base import BlockDevice, Mount, PreparedVolume, Sources
from host.clocks import Clock
from proto.cri import runtime_pb2 as pb


class RuntimePort(Protocol):
    """The runtime calls that pods need (see agent.pods.runtime.Runtime)."""

    async def run_sandbox(self, config: pb.PodSandboxConfig, *, handler: str = "") -> str: ...
    async def stop_sandbox(self, sandbox_id: str) -> None: ...
    async def remove_sandbox(self, sandbox_id: str) -> None: ...
    async def sandbox(self, sandbox_id: str) -> SandboxFact: ...
    async def create_container(
        self, sandbox_id: str, config: pb.ContainerConfig, sandbox_config: pb.PodSandboxConfig
    ) -> str: ...
    async def start_container(self, container_id: str) -> None: ...
    async def stop_container(self, container_id: str, *, grace: float) -> None: ...
    async def remove_container(self, container_id: str) -> None: ...
    async def container(self, container_id: str) -> ContainerFact: ...
    async def update_container(self, container_id: str, limits: pb.LinuxContainerResources) -> None: ...
    async def update_sandbox(self, sandbox_id: str, limits: pb.LinuxContainerResources) -> None: ...
    async def container_stats(self, *, sandbox_id: str = "") -> Sequence[pb.ContainerStats]: ...
    async def exec_sync(self, container_id: str, command: Sequence[str], *, timeout: float) -> ExecResult: ...


class ProbePort(Protocol):
    """See agent.probes.manager.ProbeManager."""

    def add(
        self,
        pod: Pod,
        container: Container,
        *,
        container_id: str,
        pod_ip: str,
        started_at: float,
        known: Mapping[Any, bool] | None = None,
    ) -> None: ...
    def remove(self, container_id: str) -> None: ...
    def remove_pod(self, pod_uid: str) -> None: ...
    def terminating(self, pod_uid: str) -> None: ...
    def started(self, container_id: str) -> bool: ...
    def ready(self, container_id: str) -> bool: ...
    def states(self, container_id: str) -> Mapping[Any, bool]: ...


class VolumePort(Protocol):
    """See agent.volumes.manager.VolumeManager."""

    async def prepare(self, pod: Pod) -> dict[str, PreparedVolume]: ...
    async def container_mounts(
        self,
        pod: Pod,
        container: Container,
        prepared: Mapping[str, PreparedVolume],
        *,
        env: Mapping[str, str] | None = None,
    ) -> tuple[Mount, ...]: ...
    def container_devices(
        self, container: Container, prepared: Mapping[str, PreparedVolume]
    ) -> tuple[BlockDevice, ...]: ...
    async def teardown(self, pod_uid: str) -> None: ...


class PolicyPort(Protocol):
    """See agent.policy.component.PolicyAgent."""

    @property
    def problem(self) -> str: ...
    async def ready(self, pod: Pod, ips: Sequence[str], *, early: bool) -> None: ...
    def forget(self, uid: str) -> None: ...


class DevicePort(Protocol):
    """See agent.devices.manager.DeviceManager."""

    def reserve(self, pod: Pod) -> str: ...
    async def prepare(self, pod: Pod, container: Container) -> Grants: ...
    def release(self, uid: str) -> None: ...


class EventPort(Protocol):
    """See agent.api.events.EventRecorder."""

    def record(self, ref: ObjectReference, *, type: str, reason: str, message: str) -> None: ...


class StatusPort(Protocol):
    """See agent.pods.status_writer.StatusWriter."""

    def put(self, pod: Pod, status: Any, *, soon: bool) -> None: ...
    def finish(self, pod: Pod) -> None: ...
    async def settled(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Everything a worker may use besides its own pod."""

    settings: PodSettings
    clock: Clock
    runtime: RuntimePort
    observer: Observer
    images: ImagePuller
    volumes: VolumePort
    probes: ProbePort
    events: EventPort
    statuses: StatusPort
    sources: Sources
    cgroups: PodCgroups
    policies: PolicyPort
    devices: DevicePort
    timelines: Timelines
    users: UserNamespaces
    services: Callable[[], Sequence[Service] | None]
    """Services known to the node; None while the first list is still to come."""
    routed: Callable[[Collection[str]], bool]
    """Whether services of this node send new connections to a pod at these addresses."""
    allocatable: Callable[[], Mapping[str, str]]
    """The node's allocatable resources now, as quantities: the downward API's, for limits left unset."""
    metrics: PodMetrics = field(default_factory=PodMetrics)
    runtime_name: str = "nodelet-cri"
