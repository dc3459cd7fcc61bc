"""emptyDir volumes: a directory of the pod's own, on the node's disk or (medium Memory) in a tmpfs.

It outlives container restarts and goes with the pod. A tmpfs is as large as the smallest of its sizeLimit,
the pod's memory limit and the node's allocatable memory (KEP-1967); a sizeLimit on disk is enforced by
eviction, not here.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from agent.api import quantity
from agent.volumes.base import Context, PreparedVolume, Unready
from agent.volumes.directories import make_directory, own

if TYPE_CHECKING:
    from agent.api.structs import EmptyDirVolumeSource, Pod, Volume

MODE = 0o777


async def set_up(context: Context, volume: Volume) -> PreparedVolume:
    """Make the directory, and mount its tmpfs where memory is asked for.

    Raises:
        Unready: an unknown medium, or a sizeLimit that is no quantity.
    """
    source = volume.empty_dir
    if source is None:
        raise Unready("not an emptyDir")
    if source.medium not in ("", "Memory"):
        raise Unready(f"emptyDir medium {source.medium!r} is not supported by this node: use '' or Memory")
    size = None
    if source.medium == "Memory":
        try:
            size = memory_size(source, context.pod, context.allocatable.get("memory"))
        except ValueError as exc:
            raise Unready(f"emptyDir sizeLimit: {exc}") from exc
    await asyncio.to_thread(_make, context, memory=source.medium == "Memory", size=size)
    return PreparedVolume(name=volume.name, host_path=context.directory)


def _make(context: Context, *, memory: bool, size: int | None) -> None:
    new = make_directory(context.directory, mode=MODE)
    if memory and not context.mounter.is_mounted(context.directory):
        context.mounter.tmpfs(context.directory, mode=MODE, size=size)
        new = True
    if new:
        os.chmod(context.directory, MODE)
        own(context.directory, group=context.fs_group)


def memory_size(source: EmptyDirVolumeSource, pod: Pod, allocatable: str | None) -> int | None:
    """Bytes of a tmpfs, or None for the kernel's default (half of the machine's memory).

    Raises:
        ValueError: a quantity that cannot be read.
    """
    bounds = [quantity.value(text) for text in (source.size_limit, allocatable) if text]
    limits = [container.resources.limits.get("memory") for container in pod.spec.containers]
    if limits and all(limits):
        bounds.append(sum(quantity.value(limit) for limit in limits if limit))
    positive = [bound for bound in bounds if bound > 0]
    return min(positive, default=None)
