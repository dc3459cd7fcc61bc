"""Eviction signals and thresholds: what is watched, and from where on it is too little. Pure.

Source: k8s.io/kubernetes/pkg/kubelet/eviction/{api/types.go, helpers.go} (v1.37),
https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from agent.api import quantity

MEMORY = "memory.available"
ALLOCATABLE_MEMORY = "allocatableMemory.available"
"""What is left of the memory all pods together may use (the limit of `kubepods`)."""
NODE_FS, NODE_INODES = "nodefs.available", "nodefs.inodesFree"
IMAGE_FS, IMAGE_INODES = "imagefs.available", "imagefs.inodesFree"
CONTAINER_FS, CONTAINER_INODES = "containerfs.available", "containerfs.inodesFree"
PIDS = "pid.available"

MEMORY_PRESSURE, DISK_PRESSURE, PID_PRESSURE = "MemoryPressure", "DiskPressure", "PIDPressure"

CONDITIONS: Mapping[str, str] = {
    MEMORY: MEMORY_PRESSURE,
    ALLOCATABLE_MEMORY: MEMORY_PRESSURE,
    NODE_FS: DISK_PRESSURE,
    NODE_INODES: DISK_PRESSURE,
    IMAGE_FS: DISK_PRESSURE,
    IMAGE_INODES: DISK_PRESSURE,
    CONTAINER_FS: DISK_PRESSURE,
    CONTAINER_INODES: DISK_PRESSURE,
    PIDS: PID_PRESSURE,
}
"""The node condition a signal raises."""

RESOURCES: Mapping[str, str] = {
    MEMORY: "memory",
    ALLOCATABLE_MEMORY: "memory",
    NODE_FS: "ephemeral-storage",
    IMAGE_FS: "ephemeral-storage",
    CONTAINER_FS: "ephemeral-storage",
    NODE_INODES: "inodes",
    IMAGE_INODES: "inodes",
    CONTAINER_INODES: "inodes",
    PIDS: "pids",
}
"""The resource a signal is about, as messages name it."""

CONFIGURABLE = tuple(signal for signal in RESOURCES if signal != ALLOCATABLE_MEMORY)


@dataclass(frozen=True)
class Observation:
    """How much is left of how much: bytes, inodes or process ids."""

    available: int
    capacity: int


@dataclass(frozen=True)
class Amount:
    """A quantity, or a share of the capacity."""

    text: str
    """As it was written, "100Mi" or "10%"."""

    def of(self, capacity: int) -> int:
        """The amount in units of the capacity. Raises ValueError when the text is neither."""
        if not self.text.endswith("%"):
            return quantity.value(self.text)
        return int(capacity * float(self.text[:-1]) / 100)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A signal's value below which something has to happen."""

    signal: str
    value: Amount
    grace: float = 0.0
    """Seconds it has to be below first; 0: a hard threshold."""
    reclaim: Amount | None = None
    """How much more than the value has to be free again before it counts as over."""

    @property
    def hard(self) -> bool:
        """Whether the pod gets no grace of its own."""
        return self.grace == 0

    def limit(self, seen: Observation, *, reclaim: bool = False) -> int:
        """The value in units, with what is to be reclaimed on top when asked for."""
        more = self.reclaim.of(seen.capacity) if reclaim and self.reclaim is not None else 0
        return self.value.of(seen.capacity) + more

    def met(self, seen: Mapping[str, Observation], *, reclaim: bool = False) -> bool:
        """Whether less is available; a signal that nobody has measured is not met."""
        found = seen.get(self.signal)
        return found is not None and found.available < self.limit(found, reclaim=reclaim)


def thresholds(
    *,
    hard: Mapping[str, str],
    soft: Mapping[str, str],
    grace: Mapping[str, float],
    reclaim: Mapping[str, str],
    allocatable: bool,
) -> tuple[Threshold, ...]:
    """All thresholds of a configuration, hard ones first; 0% and 100% switch one off.

    Args:
        grace: seconds each soft threshold has to be met.
        allocatable: whether pods have a memory limit together, which is then watched as well.

    Raises:
        ValueError: names the field and the signal.
    """
    found: list[Threshold] = []
    for field, values, hold in (("evictionHard", hard, None), ("evictionSoft", soft, grace)):
        for signal, text in values.items():
            value = _amount(field, signal, text)
            if hold is not None and hold.get(signal, 0.0) <= 0:
                raise ValueError(f"evictionSoftGracePeriod.{signal} must be set, as evictionSoft.{signal} is")
            if text in ("0%", "100%"):
                continue
            found.append(Threshold(signal=signal, value=value, grace=hold[signal] if hold else 0.0))
    back = {signal: _amount("evictionMinimumReclaim", signal, text) for signal, text in reclaim.items()}
    found = [replace(each, reclaim=back.get(each.signal)) for each in found]
    if allocatable:
        found += [replace(t, signal=ALLOCATABLE_MEMORY) for t in found if t.signal == MEMORY and t.hard]
    return tuple(found)


def _amount(field: str, signal: str, text: str) -> Amount:
    if signal not in CONFIGURABLE:
        known = ", ".join(CONFIGURABLE)
        raise ValueError(f"{field}: there is no signal {signal!r}, the signals are {known}")
    amount = Amount(text)
    try:
        size = amount.of(100)
    except ValueError as exc:
        raise ValueError(f"{field}.{signal}: {exc}, or a share such as 10%") from exc
    if size < 0 or (text.endswith("%") and size > 100):
        raise ValueError(f"{field}.{signal}: {text} is out of range")
    return amount


@dataclass(frozen=True)
class Disks:
    """Which file systems are separate from that of the pods' data (nodefs)."""

    images: bool = False
    """Images have one of their own."""
    split: bool = False
    """Writable layers are not where the images are, but with the pods' data."""


def with_container_fs(found: tuple[Threshold, ...], disks: Disks) -> tuple[Threshold, ...]:
    """Give containerfs the thresholds of the file system that holds the writable layers.

    As kubelet does: values of its own for containerfs would contradict those, and are left out.
    """
    pairs = {NODE_FS: CONTAINER_FS, NODE_INODES: CONTAINER_INODES}
    if disks.images and not disks.split:
        pairs = {IMAGE_FS: CONTAINER_FS, IMAGE_INODES: CONTAINER_INODES}
    rest = tuple(t for t in found if t.signal not in (CONTAINER_FS, CONTAINER_INODES))
    return (*rest, *(replace(t, signal=pairs[t.signal]) for t in rest if t.signal in pairs))
