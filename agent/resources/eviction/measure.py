"""Reads the eviction signals from the machine: cheap figures only, no tree is walked.

Memory that is available is what is free and what the kernel can drop at once (inactive page cache), kubelet's
formula: capacity - working set. A node whose cgroup root has a memory limit has that much memory and not the
machine's, and what is available is counted from that cgroup's own usage.

Source: https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#eviction-signals
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.node import facts
from agent.resources.eviction import signals
from agent.resources.eviction.signals import Disks, Observation
from host.cgroups import Cgroups

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RuntimePlaces:
    """Folders of the container runtime: where images are, and where writable layers are ("": the same)."""

    images: str = ""
    layers: str = ""


@dataclass(frozen=True)
class Reading:
    """One set of observations, and which file systems there are."""

    seen: Mapping[str, Observation]
    disks: Disks


class SignalReader:
    """Reads all signals of one node.

    Args:
        root: a folder on the file system that pods' data is on.
        cgroups: the cgroup trees; cgroup_root: the node's own cgroup ("/": the machine's).
        pods_cgroup: cgroup all pods are in, when they have a memory limit together; "" otherwise.
        places: asks the runtime for its folders; None while it does not answer.
    """

    def __init__(
        self,
        *,
        root: Path,
        cgroups: Cgroups,
        cgroup_root: str,
        pods_cgroup: str,
        places: Callable[[], Awaitable[RuntimePlaces | None]],
        proc: Path = Path("/proc"),
    ) -> None:
        self._root = root
        self._cgroups = cgroups
        self._cgroup_root = cgroup_root
        self._pods_cgroup = pods_cgroup
        self._ask_places = places
        self._places: RuntimePlaces | None = None
        self._proc = proc
        self._missing: set[str] = set()

    async def read(self) -> Reading:
        """Everything that can be read now; a signal that cannot is left out. Raises OSError without root."""
        if self._places is None:
            self._places = await self._ask_places()
        seen = {signals.MEMORY: self._memory(), signals.PIDS: self._pids()}
        if self._pods_cgroup and (found := limited_memory(self._cgroups, self._pods_cgroup)):
            seen[signals.ALLOCATABLE_MEMORY] = found
        seen |= _file_system(self._root, (signals.NODE_FS, signals.NODE_INODES))
        places = self._places or RuntimePlaces()
        images, layers = places.images, places.layers or places.images
        for folder, names in (
            (images, (signals.IMAGE_FS, signals.IMAGE_INODES)),
            (layers, (signals.CONTAINER_FS, signals.CONTAINER_INODES)),
        ):
            seen |= self._runtime_file_system(folder, names)
        return Reading(seen, self._disks(images, layers))

    def _memory(self) -> Observation:
        found = limited_memory(self._cgroups, self._cgroup_root)
        memory = facts.meminfo(self._proc)
        total = memory.get("MemTotal", 0)
        if found is not None and found.capacity < total:
            return found
        return Observation(memory.get("MemFree", 0) + memory.get("Inactive(file)", 0), total)

    def _pids(self) -> Observation:
        capacity, used = facts.process_ids(self._proc)
        return Observation(capacity - used, capacity)

    def _runtime_file_system(self, folder: str, names: Sequence[str]) -> dict[str, Observation]:
        if not folder:
            return {}
        try:
            found = _file_system(Path(folder), names)
        except OSError as exc:
            if folder not in self._missing:
                self._missing.add(folder)
                log.warning("file system of the runtime not measured path=%s error=%s", folder, exc)
            return {}
        self._missing.discard(folder)
        return found

    def _disks(self, images: str, layers: str) -> Disks:
        node = _device(str(self._root))
        of_images, of_layers = _device(images), _device(layers)
        separate = of_images is not None and of_images != node
        return Disks(images=separate, split=separate and of_layers is not None and of_layers != of_images)


def limited_memory(cgroups: Cgroups, path: str) -> Observation | None:
    """What is left in a cgroup with a memory limit; None when it has none, or is the root."""
    if not path.strip("/"):
        return None
    found = cgroups.stats(path)
    if not found.memory_limit:
        return None
    return Observation(max(0, found.memory_limit - found.memory_working_set), found.memory_limit)


def _file_system(folder: Path, names: Sequence[str]) -> dict[str, Observation]:
    """Bytes and inodes of a file system. One that makes inodes as it needs them (btrfs) tells none."""
    found = os.statvfs(folder)
    result = {names[0]: Observation(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)}
    if found.f_files:
        result[names[1]] = Observation(found.f_favail, found.f_files)
    return result


def _device(folder: str) -> int | None:
    try:
        return os.stat(folder).st_dev if folder else None
    except OSError:
        return None
