"""The eviction loop: look at the signals, report pressures, reclaim, and as the last resort end a pod.

One pod at a time: the next one is chosen only after the room the last one held is free again. Before any pod
has to go for want of disk, dead containers and unused images do.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.api.structs import Pod
from agent.resources.eviction import message, signals, storage
from agent.resources.eviction.admission import critical
from agent.resources.eviction.measure import Reading
from agent.resources.eviction.plan import CALM_PAUSE, Memory, look, pause, settled
from agent.resources.eviction.rank import PodUsage, rank
from agent.resources.eviction.signals import Disks, Threshold, with_container_fs
from agent.server.exposition import Family, Sample
from host.clocks import Clock

log = logging.getLogger(__name__)
IMMEDIATE_GRACE = 1
"""Seconds a pod gets that is evicted by a hard threshold or for its own limit."""
CLEANUP_SECONDS = 30.0
"""Seconds to wait for an evicted pod to be gone before the signals count again."""
WALK_SHARE = 20
"""Local storage is measured again after this many times what the last measurement took, 10 s at least."""


class PodPort(Protocol):
    """What is asked of the pods component."""

    def active(self) -> list[Pod]:
        """Pods that have neither ended nor been told to."""

    def evict(self, pod: Pod, text: str, *, grace: int, disruption: bool) -> None:
        """End the pod as Failed, reason Evicted, with an event."""

    async def ended(self, pods: Sequence[Pod], *, timeout: float) -> bool:
        """Wait until nothing of these pods holds resources any more; False when that takes too long."""


class UsagePort(Protocol):
    """See agent.resources.eviction.usage.UsageReader.read."""

    async def __call__(self, pods: Iterable[Pod], *, disk: bool) -> Mapping[str, PodUsage]: ...


@dataclass(frozen=True, kw_only=True)
class EvictionSettings:
    """The names in parentheses are KubeletConfiguration's."""

    thresholds: tuple[Threshold, ...] = ()
    transition: float = 300.0
    """Seconds (evictionPressureTransitionPeriod)."""
    max_soft_grace: int = 0
    """Seconds a pod gets at most at a soft threshold, negative: all it asks for
    (evictionMaxPodGracePeriod)."""
    local_storage: bool = True
    """Whether pods are held to their own storage limits (localStorageCapacityIsolation)."""


class EvictionManager:
    """Keeps the node from running out. `run()` until cancelled; `pressures` is what the node reports.

    Args:
        read: the signals; raises OSError.
        usage: what pods use, by uid.
        pods: the pods component.
        reclaim: frees what "containers" and "images" stand for.
        say: records an event about the node: reason and message.
        on_change: called when the pressures have changed.
    """

    def __init__(
        self,
        settings: EvictionSettings,
        *,
        clock: Clock,
        read: Callable[[], Awaitable[Reading]],
        usage: UsagePort,
        pods: PodPort,
        reclaim: Mapping[str, Callable[[], Awaitable[None]]],
        say: Callable[[str, str], None],
        on_change: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._read = read
        self._usage = usage
        self._pods = pods
        self._reclaim = reclaim
        self._say = say
        self._on_change = on_change
        self._memory = Memory()
        self._evicted = Counter[str]()
        self._measure_storage_at = clock.monotonic()

    @property
    def pressures(self) -> Mapping[str, str]:
        """Node conditions that are True, with the arithmetic behind each."""
        return self._memory.said

    async def run(self) -> None:
        """Look and act until cancelled."""
        while True:
            try:
                wait = await self.synchronize()
            except OSError as exc:
                log.warning("eviction signals not read error=%s", exc)
                wait = CALM_PAUSE
            await self._clock.sleep(wait)

    async def synchronize(self) -> float:
        """One look and what follows from it; answers the seconds until the next one. Raises OSError."""
        reading = await self._read()
        thresholds = with_container_fs(self._settings.thresholds, reading.disks)
        before = self._memory
        seen, now = reading.seen, self._clock.monotonic()
        found = look(before, thresholds, seen, now=now, transition=self._settings.transition)
        self._memory = found.memory
        if found.pressures.keys() != before.said.keys():
            log.warning("node pressure changed now=%s", dict(found.pressures) or "none")
            self._on_change()
        over = await self._over_their_limits(reading.disks)
        if over:
            await self._pods.ended(over, timeout=CLEANUP_SECONDS)
            return 0.0
        if not found.due:
            return pause(thresholds, seen, pressed=bool(found.pressures))
        return await self._act(found.due, thresholds, reading)

    async def _act(
        self, due: Sequence[Threshold], thresholds: Sequence[Threshold], reading: Reading
    ) -> float:
        cause = due[0]
        resource = signals.RESOURCES[cause.signal]
        self._say("EvictionThresholdMet", f"Attempting to reclaim {resource}")
        steps = reclaims(cause.signal, reading.disks)
        for step in steps:
            await self._reclaim[step]()
        if steps and settled(thresholds, (await self._read()).seen):
            log.info("eviction not needed resource=%s freed=%s", resource, ",".join(steps))
            return pause(thresholds, reading.seen)
        evicted = await self._evict_one(due, reading)
        if evicted is None:
            log.warning("no pod can be evicted resource=%s", resource)
            return CALM_PAUSE
        await self._pods.ended([evicted], timeout=CLEANUP_SECONDS)
        return 0.0

    def families(self) -> Sequence[Family]:
        """For /metrics: pods ended by a threshold; those over a limit of their own are not in it."""
        samples = (Sample(n, {"eviction_signal": signal}) for signal, n in sorted(self._evicted.items()))
        text = "Cumulative number of pod evictions by eviction signal"
        return (Family("kubelet_evictions", "counter", text, tuple(samples)),)

    async def _evict_one(self, due: Sequence[Threshold], reading: Reading) -> Pod | None:
        cause, pods = due[0], self._pods.active()
        disk = signals.CONDITIONS[cause.signal] == signals.DISK_PRESSURE
        usage = await self._usage(pods, disk=disk)
        grace = IMMEDIATE_GRACE if cause.hard else self._settings.max_soft_grace
        for pod in rank(pods, usage, cause.signal, reading.disks):
            if not critical(pod):
                text = message.low(pod, usage.get(pod.metadata.uid), due, reading.seen)
                self._pods.evict(pod, text, grace=grace, disruption=True)
                self._evicted[cause.signal] += 1
                return pod
        return None

    async def _over_their_limits(self, disks: Disks) -> list[Pod]:
        """Evict the pods that wrote more than they may; a walk that takes long is repeated less often."""
        began = self._clock.monotonic()
        if not self._settings.local_storage or began < self._measure_storage_at:
            return []
        pods = [pod for pod in self._pods.active() if storage.limited(pod)]
        if not pods:
            return []
        usage = await self._usage(pods, disk=True)
        took = self._clock.monotonic() - began
        self._measure_storage_at = began + max(CALM_PAUSE, WALK_SHARE * took)
        over = []
        for pod in pods:
            found = usage.get(pod.metadata.uid)
            text = None if found is None or critical(pod) else storage.overrun(pod, found, disks)
            if text is not None:
                self._pods.evict(pod, text, grace=IMMEDIATE_GRACE, disruption=False)
                over.append(pod)
        return over


def reclaims(signal: str, disks: Disks) -> tuple[str, ...]:
    """What can be freed without a pod when this signal is met: dead containers, then unused images. Pure.

    Source: pkg/kubelet/eviction/helpers.go, buildSignalToNodeReclaimFuncs (v1.37).
    """
    if signals.CONDITIONS[signal] != signals.DISK_PRESSURE:
        return ()
    images = signal in (signals.IMAGE_FS, signals.IMAGE_INODES)
    node = signal in (signals.NODE_FS, signals.NODE_INODES)
    if disks.images and disks.split:
        return ("images",) if images else ("containers",)
    if disks.images and node:
        return ()
    return ("containers", "images")
