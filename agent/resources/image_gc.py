"""Image garbage collection: which images go when their disk fills up, or when nobody has used them for long.

An image in use is never removed: by a container, running or dead, by one about to start, or because the
runtime has pinned it. A new one is left alone for a while, since what it was pulled for may only just begin.

Source: k8s.io/kubernetes/pkg/kubelet/images/image_gc_manager.go (v1.37).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from agent.pods.convert import ImageFact
from agent.resources.eviction.signals import Observation
from host.clocks import Clock

log = logging.getLogger(__name__)
PERIOD = 300.0
"""Seconds between two collections."""


class ImagePort(Protocol):
    """The runtime calls that collecting needs."""

    async def images(self) -> list[ImageFact]: ...
    async def remove_image(self, ref: str) -> None: ...


class Prune(Protocol):
    """See agent.pods.image_access.ImageAccess.prune."""

    def __call__(self, known: Collection[str], *, since: float) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """The names in parentheses are KubeletConfiguration's. Ages are seconds."""

    high: int = 85
    """Percent of the disk in use from which on images go (imageGCHighThresholdPercent); 100: never."""
    low: int = 80
    """Percent they go down to (imageGCLowThresholdPercent)."""
    minimum_age: float = 120.0
    """How old an image has to be (imageMinimumGCAge)."""
    maximum_age: float = 0.0
    """After how long without use it goes whatever the disk says (imageMaximumGCAge); 0: never."""


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """What is remembered of an image. Times are monotonic seconds; None: never, or before our time."""

    id: str
    size: int
    pinned: bool = False
    first_seen: float | None = None
    last_used: float | None = None


def remember(
    before: Mapping[str, ImageRecord],
    images: Iterable[ImageFact],
    used: Collection[str],
    *,
    now: float,
    first: bool,
) -> dict[str, ImageRecord]:
    """The records after one look.

    Args:
        used: ids and names of images in use.
        first: whether this is the first look, whose images have been there for nobody knows how long.
    """
    after = {}
    for image in images:
        known = before.get(image.id) or ImageRecord(
            id=image.id, size=image.size, first_seen=None if first else now
        )
        in_use = any(name in used for name in (image.id, *image.repo_tags, *image.repo_digests))
        last = now if in_use else known.last_used
        after[image.id] = replace(known, size=image.size, pinned=image.pinned, last_used=last)
    return after


def removable(records: Iterable[ImageRecord], policy: ImagePolicy, *, now: float) -> list[ImageRecord]:
    """Images that may go at all, in the order they go: unused for the longest time, then known for it."""
    free = [
        record
        for record in records
        if not record.pinned
        and record.last_used != now
        and (record.first_seen is None or now - record.first_seen >= policy.minimum_age)
    ]
    return sorted(free, key=lambda r: (_age_key(r.last_used), _age_key(r.first_seen)))


def _age_key(time: float | None) -> float:
    return float("-inf") if time is None else time


def outdated(
    records: Iterable[ImageRecord], policy: ImagePolicy, *, now: float, began: float
) -> list[ImageRecord]:
    """Images nobody has used for the maximum age. None before we have watched for that long ourselves."""
    if policy.maximum_age <= 0 or now - began <= policy.maximum_age:
        return []
    return [
        r for r in removable(records, policy, now=now) if now - (r.last_used or began) > policy.maximum_age
    ]


def excess(disk: Observation, policy: ImagePolicy) -> int:
    """Bytes to free: down to the low threshold, once the high one is reached; 0 otherwise."""
    available = min(disk.available, disk.capacity)
    if disk.capacity <= 0 or policy.high >= 100:
        return 0
    if 100 - available * 100 // disk.capacity < policy.high:
        return 0
    return max(0, disk.capacity * (100 - policy.low) // 100 - available)


class ImageCollector:
    """Collects images. `run()` until cancelled.

    Args:
        failures: what the runtime's calls raise.
        used: ids and names of images in use, asked anew before each removal.
        disk: the images' file system; None while it is not known.
        say: records a warning about the node: reason and message.
        prune: told after each collection which images there are, and since when (Unix seconds).
    """

    def __init__(
        self,
        policy: ImagePolicy,
        *,
        clock: Clock,
        runtime: ImagePort,
        failures: tuple[type[Exception], ...],
        used: Callable[[], Collection[str]],
        disk: Callable[[], Awaitable[Observation | None]],
        say: Callable[[str, str], None],
        prune: Prune | None = None,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._runtime = runtime
        self._failures = failures
        self._used = used
        self._disk = disk
        self._say = say
        self._prune = prune
        self._records: dict[str, ImageRecord] = {}
        self._began = clock.monotonic()
        self._first = True

    async def run(self) -> None:
        """Collect from time to time."""
        while True:
            try:
                await self.collect()
            except self._failures as exc:
                log.warning("images not collected error=%s", exc)
            await self._clock.sleep(PERIOD)

    async def collect(self) -> None:
        """One collection. Raises what the runtime's calls raise."""
        since = self._clock.now()
        await self._collect()
        if self._prune is not None:
            self._prune(self._records.keys(), since=since)

    async def _collect(self) -> None:
        now = await self._look()
        old = outdated(self._records.values(), self._policy, now=now, began=self._began)
        await self._remove(old, need=None)
        disk = await self._disk()
        need = excess(disk, self._policy) if disk is not None else 0
        if need <= 0 or disk is None:
            return
        freed = await self._remove(removable(self._records.values(), self._policy, now=now), need=need)
        if freed < need:
            text = (
                "Failed to garbage collect required amount of images. "
                f"Attempted to free {need} bytes, but only found {freed} bytes eligible to free. "
                f"In use are {disk.capacity - disk.available} of {disk.capacity} bytes, "
                f"the threshold is {self._policy.high}%."
            )
            self._say("FreeDiskSpaceFailed", text)

    async def delete_unused(self) -> None:
        """Remove every image that may go: the disk is short. Failures are logged."""
        try:
            now = await self._look()
            await self._remove(removable(self._records.values(), self._policy, now=now), need=None)
        except self._failures as exc:
            log.warning("unused images not removed error=%s", exc)

    async def _look(self) -> float:
        images = await self._runtime.images()
        now = self._clock.monotonic()
        self._records = remember(self._records, images, self._used(), now=now, first=self._first)
        self._first = False
        return now

    async def _remove(self, images: Sequence[ImageRecord], *, need: int | None) -> int:
        """Remove images until `need` bytes are freed; answers how many were."""
        freed = 0
        for image in images:
            if need is not None and freed >= need:
                break
            if image.id in self._used():
                continue  # a pod has come for it meanwhile
            try:
                await self._runtime.remove_image(image.id)
            except self._failures as exc:
                log.warning("image not removed image=%s error=%s", image.id, exc)
                continue
            log.info("image removed image=%s bytes=%s", image.id, image.size)
            del self._records[image.id]
            freed += image.size
        return freed
