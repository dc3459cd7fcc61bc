"""The Node object we want, from facts. Pure: builds specs and patches, talks to nobody.

Source: k8s.io/kubernetes/pkg/kubelet/{kubelet_node_status.go, nodestatus/setters.go} (v1.37). NodeRestriction
allows a node to change its own status, and of its metadata only labels outside
node-restriction.kubernetes.io.

exec, attach and port-forward come to us as WebSockets, because we declare ExtendWebSocketsToKubelet in
status.declaredFeatures: the API server (beta and on since 1.36) looks for that name before it hands a v5
WebSocket through instead of translating it to SPDY. With an older API server SPDY arrives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from agent.api import quantity
from agent.api.cluster import (
    ContainerImage,
    DaemonEndpoint,
    Node,
    NodeAddress,
    NodeDaemonEndpoints,
    NodeFeatures,
    NodeSpec,
    NodeStatus,
    NodeSystemInfo,
    Taint,
)
from agent.api.meta import JSON, Condition, ObjectMeta
from agent.node import conditions
from agent.node.conditions import RuntimeState
from agent.node.facts import Machine
from agent.resources.eviction.signals import Amount

WEB_SOCKETS = "ExtendWebSocketsToKubelet"
POD_FEATURES = (
    "InPlacePodLevelResourcesVerticalScaling",
    "InPlacePodVerticalScalingInitContainers",
    "RestartAllContainersOnContainerExits",
)
"""Declared features (KEP-5328) without which the API server refuses pods, or changes of them, here."""


@dataclasses.dataclass(frozen=True)
class NodePlan:
    """The settings that shape our Node object."""

    name: str
    hostname: str
    version: str
    """What `kubectl get nodes` shows, "v1.37.0+nodelet.0.1.0"."""
    port: int
    max_pods: int
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    provider_id: str = ""
    register: bool = True
    """Create the Node where there is none (registerNode); False waits until somebody made it."""
    reserved: tuple[Mapping[str, str], ...] = ()
    """systemReserved and kubeReserved."""
    eviction_hard: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_images: int = 50
    declared_features: tuple[str, ...] = (WEB_SOCKETS,)


def labels(plan: NodePlan, machine: Machine) -> dict[str, str]:
    """The labels every node has, and the ones asked for."""
    return {
        "kubernetes.io/hostname": plan.hostname,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": machine.architecture,
        "beta.kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": machine.architecture,
        **plan.labels,
    }


def new_node(plan: NodePlan, machine: Machine, status: NodeStatus) -> Node:
    """The object to create when there is none."""
    return Node(
        metadata=ObjectMeta(
            name=plan.name,
            labels=labels(plan, machine),
            annotations={"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
        ),
        spec=NodeSpec(provider_id=plan.provider_id, taints=plan.taints),
        status=status,
    )


def adoption(node: Node, plan: NodePlan, machine: Machine) -> JSON:
    """The patch that makes an existing object ours: missing labels and annotation; None when it fits.

    Taints are only set on creation: an administrator may have removed them since.
    """
    wanted = labels(plan, machine)
    missing = {key: value for key, value in wanted.items() if node.metadata.labels.get(key) != value}
    marks = {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}
    absent = {key: value for key, value in marks.items() if node.metadata.annotations.get(key) != value}
    if not missing and not absent:
        return None
    metadata: dict[str, JSON] = {"uid": node.metadata.uid}
    if missing:
        metadata["labels"] = missing
    if absent:
        metadata["annotations"] = absent
    return {"metadata": metadata}


def capacity(plan: NodePlan, machine: Machine, nodefs: int) -> dict[str, str]:
    """What the machine has, as quantities; `nodefs` is the size in bytes of the pods' file system."""
    return {
        "cpu": str(machine.cpus),
        "memory": quantity.format_kibibytes(machine.memory),
        "ephemeral-storage": quantity.format_kibibytes(nodefs),
        "pods": str(plan.max_pods),
        **{name: str(size) for name, size in machine.hugepages.items()},
    }


def allocatable(plan: NodePlan, machine: Machine, nodefs: int) -> dict[str, str]:
    """Capacity less what is reserved, less the hard eviction thresholds, less huge pages from memory."""

    def held(name: str) -> int:
        return sum(quantity.value(str(item.get(name, "0"))) for item in plan.reserved)

    def kept(name: str, size: int) -> int:
        return Amount(plan.eviction_hard.get(name, "0")).of(size)

    cpu = machine.cpus * 1000 - sum(quantity.milli(str(item.get("cpu", "0"))) for item in plan.reserved)
    memory = machine.memory - held("memory") - kept("memory.available", machine.memory)
    memory -= sum(machine.hugepages.values())
    disk = nodefs - held("ephemeral-storage") - kept("nodefs.available", nodefs)
    return {
        "cpu": quantity.format_milli(max(0, cpu)),
        "memory": quantity.format_kibibytes(max(0, memory)),
        "ephemeral-storage": str(max(0, disk)),
        "pods": str(plan.max_pods),
        **{name: str(size) for name, size in machine.hugepages.items()},
    }


def build(
    plan: NodePlan,
    *,
    machine: Machine,
    nodefs: int,
    runtime: RuntimeState,
    addresses: Sequence[NodeAddress],
    images: Sequence[ContainerImage] = (),
    pressures: Mapping[str, str] | None = None,
    problems: Sequence[str] = (),
    devices: Mapping[str, tuple[int, int]] | None = None,
) -> NodeStatus:
    """The whole status, conditions without times.

    Args:
        nodefs: size in bytes of the file system that pods' data is on.
        pressures, problems: see `conditions.plan`.
        devices: capacity and allocatable of each resource of a device plugin.
    """
    found: tuple[Condition, ...] = conditions.plan(
        pressures=pressures or {}, runtime=runtime, problems=problems
    )
    plugins = devices or {}
    biggest = sorted(images, key=lambda image: -image.size_bytes)
    return NodeStatus(
        capacity={
            **capacity(plan, machine, nodefs),
            **{name: str(size) for name, (size, _) in plugins.items()},
        },
        allocatable={
            **allocatable(plan, machine, nodefs),
            **{name: str(size) for name, (_, size) in plugins.items()},
        },
        conditions=found,
        addresses=tuple(addresses),
        daemon_endpoints=NodeDaemonEndpoints(kubelet_endpoint=DaemonEndpoint(port=plan.port)),
        node_info=system_info(plan, machine, runtime),
        images=tuple(biggest if plan.max_images < 0 else biggest[: plan.max_images]),
        runtime_handlers=runtime.handlers,
        features=NodeFeatures(supplemental_groups_policy=runtime.supplemental_groups_policy),
        declared_features=plan.declared_features,
    )


def system_info(plan: NodePlan, machine: Machine, runtime: RuntimeState) -> NodeSystemInfo:
    """`status.nodeInfo`."""
    return NodeSystemInfo(
        machine_id=machine.machine_id,
        system_uuid=machine.system_uuid,
        boot_id=machine.boot_id,
        kernel_version=machine.kernel_version,
        os_image=machine.os_image,
        container_runtime_version=f"{runtime.name}://{runtime.version}" if runtime.name else "",
        kubelet_version=plan.version,
        kube_proxy_version="",
        operating_system="linux",
        architecture=machine.architecture,
    )


def comparable(status: NodeStatus) -> tuple[object, ...]:
    """What decides whether a status must be posted now: all but heartbeats and free-running figures."""
    seen = [(item.type, item.status, item.reason, item.message) for item in status.conditions]
    return (
        tuple(sorted(seen)),
        tuple(sorted(status.capacity.items())),
        tuple(sorted((key, text) for key, text in status.allocatable.items() if key != "ephemeral-storage")),
        status.addresses,
        status.node_info,
        status.images,
        status.daemon_endpoints,
        status.runtime_handlers,
        status.features,
        status.declared_features,
    )
