"""Which pod goes first when a resource runs out. Pure.

Pods that use more than they asked for go before the others, then the lower priority, then the largest use
above the request. A pod nobody has figures of goes first. Process ids are asked for by nobody, so there
priority decides, then the number of processes.

Source: k8s.io/kubernetes/pkg/kubelet/eviction/helpers.go, rankMemoryPressure and its neighbours (v1.37).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from agent.api.structs import Pod
from agent.resources import qos
from agent.resources.eviction import signals
from agent.resources.eviction.signals import Disks


@dataclass(frozen=True)
class Disk:
    """Disk in use."""

    bytes: int = 0
    inodes: int = 0

    def __add__(self, other: Disk) -> Disk:
        return Disk(self.bytes + other.bytes, self.inodes + other.inodes)


@dataclass(frozen=True, kw_only=True)
class ContainerUsage:
    """What one container uses. Memory is its working set, in bytes."""

    memory: int = 0
    rootfs: Disk = Disk()
    logs: Disk = Disk()


@dataclass(frozen=True, kw_only=True)
class PodUsage:
    """What one pod uses."""

    memory: int = 0
    processes: int = 0
    containers: Mapping[str, ContainerUsage] = field(default_factory=dict)
    volumes: Mapping[str, Disk] = field(default_factory=dict)
    """emptyDir volumes by name."""
    memory_volumes: frozenset[str] = frozenset()
    """Those of them that are in memory, and so no disk."""

    @property
    def rootfs(self) -> Disk:
        return sum((c.rootfs for c in self.containers.values()), Disk())

    @property
    def logs(self) -> Disk:
        return sum((c.logs for c in self.containers.values()), Disk())

    @property
    def local_volumes(self) -> Disk:
        found = (disk for name, disk in self.volumes.items() if name not in self.memory_volumes)
        return sum(found, Disk())


def rank(pods: Iterable[Pod], usage: Mapping[str, PodUsage], signal: str, disks: Disks) -> list[Pod]:
    """The pods in the order they go.

    Args:
        usage: by pod uid.
        signal: what runs out.
        disks: which file systems there are, which decides what counts.
    """
    resource = signals.RESOURCES[signal]
    if resource == "pids":
        return sorted(pods, key=lambda pod: (_priority(pod), *_processes(usage.get(pod.metadata.uid))))
    used = _memory if resource == "memory" else _disk(signal, disks)
    asked = {"memory": "memory", "ephemeral-storage": "ephemeral-storage"}.get(resource, "")

    def key(pod: Pod) -> tuple[bool, bool, int, Fraction]:
        found = usage.get(pod.metadata.uid)
        if found is None:
            return (False, False, _priority(pod), Fraction(0))
        requests = qos.pod_requests(pod)
        amount = used(found)
        exceeds = amount > requests.get(asked, Fraction(0))
        # Inodes have no request; kubelet takes the one for bytes off all the same.
        request = requests.get(asked or "ephemeral-storage", Fraction(0))
        return (True, not exceeds, _priority(pod), request - amount)

    return sorted(pods, key=key)


def _priority(pod: Pod) -> int:
    return pod.spec.priority or 0


def _memory(usage: PodUsage) -> int:
    return usage.memory


def _processes(usage: PodUsage | None) -> tuple[bool, int]:
    return (False, 0) if usage is None else (True, -usage.processes)


def _disk(signal: str, disks: Disks) -> Callable[[PodUsage], int]:
    """What of a pod is on the file system that runs out."""
    images = signal in (signals.IMAGE_FS, signals.IMAGE_INODES)
    layers = images or signal in (signals.CONTAINER_FS, signals.CONTAINER_INODES)
    inodes = signals.RESOURCES[signal] == "inodes"

    def parts(usage: PodUsage) -> Disk:
        if disks.images and disks.split:
            # Images alone are on their file system; no pod has a share of it.
            return Disk() if images else usage.rootfs + usage.logs + usage.local_volumes
        if disks.images:
            return usage.rootfs if layers else usage.logs + usage.local_volumes
        return usage.rootfs + usage.logs + usage.local_volumes

    return lambda usage: parts(usage).inodes if inodes else parts(usage).bytes
