"""emptyDir volumes: a directory of the pod's own, on the node's disk, in a tmpfs (medium Memory), or in huge
pages (medium HugePages or HugePages-<size>).

It outlives container restarts and goes with the pod. A tmpfs is as large as the smallest of its sizeLimit,
the pod's memory limit and the node's allocatable memory (KEP-1967); huge pages are limited by the containers'
cgroups; a sizeLimit on disk is enforced by eviction, not here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from agent.api import quantity
from agent.volumes.base import Context, PreparedVolume, Unready
from agent.volumes.directories import make_directory, own

if TYPE_CHECKING:
    from agent.api.structs import EmptyDirVolumeSource, Pod, Volume

MODE = 0o777
MEMORY_MODE = 0o1777
"""A tmpfs is sticky, as the kernel makes it and kubelet leaves it."""


async def set_up(context: Context, volume: Volume) -> PreparedVolume:
    """Make the directory, and mount its tmpfs where memory is asked for.

    Raises:
        Unready: an unknown medium, or a sizeLimit that is no quantity.
    """
    source = volume.empty_dir
    if source is None:
        raise Unready("not an emptyDir")
    if source.medium == "":
        await asyncio.to_thread(_make, context, None)
    elif source.medium == "Memory":
        try:
            size = memory_size(source, context.pod, context.allocatable.get("memory"))
        except ValueError as exc:
            raise Unready(f"emptyDir sizeLimit: {exc}") from exc
        mount = partial(context.mounter.tmpfs, mode=MEMORY_MODE, size=size)
        await asyncio.to_thread(_make, context, mount, mode=MEMORY_MODE)
    else:
        page_size = huge_page_size(source.medium, context.pod)
        await asyncio.to_thread(_make, context, partial(context.mounter.hugetlbfs, page_size=page_size))
    return PreparedVolume(name=volume.name, host_path=context.directory)


def _make(context: Context, mount: Callable[[Path], None] | None, *, mode: int = MODE) -> None:
    new = make_directory(context.directory, mode=MODE)
    if mount is not None and not context.mounter.is_mounted(context.directory):
        mount(context.directory)
        new = True
    if new:
        os.chmod(context.directory, mode)
        own(context.directory, group=context.fs_group)


def huge_page_size(medium: str, pod: Pod) -> str:
    """The page size of a huge page medium in the kernel's words ("2M"): it must be one that the pod asks for.

    Raises:
        Unready: another medium, or a size that no container asks for or that is not clear.
    """
    prefix, dash, chosen = medium.partition("-")
    if prefix != "HugePages" or (dash and not chosen):
        raise Unready(
            f"emptyDir medium {medium!r} is not supported by this node: use '', Memory or HugePages-<size>"
        )
    sizes = {
        name.removeprefix("hugepages-")
        for container in (*pod.spec.containers, *pod.spec.init_containers)
        for name in (*container.resources.requests, *container.resources.limits)
        if name.startswith("hugepages-")
    }
    if chosen and chosen not in sizes:
        raise Unready(f"emptyDir medium {medium!r}: no container requests hugepages-{chosen}")
    if not chosen and len(sizes) != 1:
        raise Unready(
            f"emptyDir medium 'HugePages' needs containers that request one page size, they request "
            f"{', '.join(sorted(sizes)) or 'none'}: name the size, as in HugePages-2Mi"
        )
    return (chosen or sizes.pop()).removesuffix("i")


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
