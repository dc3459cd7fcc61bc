"""ContainerStats, ListContainerStats, StreamContainerStats: cgroup counters and the size of writable
layers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from cri.server.container_create import data_folder
from cri.server.core import Core
from cri.server.render import select_containers
from cri.state.records import ContainerState
from cri.state.store import Container
from host.cgroups import CgroupStats
from proto.cri import runtime_pb2 as pb


def disk_usage(folder: Path) -> tuple[int, int]:
    """Bytes on disk and inodes of a folder tree; what vanishes meanwhile is not counted."""
    used, inodes, waiting = 0, 0, [os.fspath(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    used += entry.stat(follow_symlinks=False).st_blocks * 512
                    inodes += 1
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except FileNotFoundError:
            continue
    return used, inodes


def cpu_usage(stats: CgroupStats, at: int) -> pb.CpuUsage:
    """CPU time since the cgroup was made."""
    return pb.CpuUsage(timestamp=at, usage_core_nano_seconds=pb.UInt64Value(value=stats.cpu_usage_ns))


def memory_usage(stats: CgroupStats, at: int) -> pb.MemoryUsage:
    """Memory now; "available" only where there is a limit to count from."""
    usage = pb.MemoryUsage(
        timestamp=at,
        working_set_bytes=pb.UInt64Value(value=stats.memory_working_set),
        usage_bytes=pb.UInt64Value(value=stats.memory_usage),
        rss_bytes=pb.UInt64Value(value=stats.memory_rss),
        page_faults=pb.UInt64Value(value=stats.memory_page_faults),
        major_page_faults=pb.UInt64Value(value=stats.memory_major_page_faults),
    )
    if stats.memory_limit:
        usage.available_bytes.value = max(0, stats.memory_limit - stats.memory_working_set)
    return usage


def render_stats(
    container: Container, stats: CgroupStats, layer: tuple[int, int], path: Path, at: int
) -> pb.ContainerStats:
    """The stats message of one container."""
    config = container.config
    message = pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=container.id, metadata=config.metadata, labels=config.labels, annotations=config.annotations
        ),
        cpu=cpu_usage(stats, at),
        memory=memory_usage(stats, at),
    )
    message.swap.timestamp = at
    message.swap.swap_usage_bytes.value = stats.swap_usage
    message.writable_layer.timestamp = at
    message.writable_layer.fs_id.mountpoint = str(path)
    message.writable_layer.used_bytes.value, message.writable_layer.inodes_used.value = layer
    return message


def _measure(core: Core, containers: Iterable[Container]) -> list[pb.ContainerStats]:
    found = []
    for container in containers:
        upper = data_folder(core, container.id) / "upper"
        stats = core.cgroups.stats(container.record.cgroup)
        found.append(render_stats(container, stats, disk_usage(upper), upper, core.now()))
    return found


async def measure(core: Core, containers: Iterable[Container]) -> list[pb.ContainerStats]:
    """Stats of those containers, read in a thread: files of many cgroups and folders."""
    return await asyncio.to_thread(_measure, core, list(containers))


async def container_stats(core: Core, request: pb.ContainerStatsRequest) -> pb.ContainerStatsResponse:
    """The stats of one container.

    Raises:
        UnknownId: no such container.
    """
    container = core.store.container(request.container_id)
    return pb.ContainerStatsResponse(stats=(await measure(core, [container]))[0])


def _selected(core: Core, wanted: pb.ContainerStatsFilter) -> list[Container]:
    found = select_containers(core.store.containers.values(), wanted)
    return [item for item in found if item.record.state is not ContainerState.EXITED]


async def list_container_stats(
    core: Core, request: pb.ListContainerStatsRequest
) -> pb.ListContainerStatsResponse:
    """The stats of the containers a filter asks for, without those that have ended."""
    return pb.ListContainerStatsResponse(stats=await measure(core, _selected(core, request.filter)))


async def stream_container_stats(
    core: Core, request: pb.StreamContainerStatsRequest
) -> AsyncIterator[pb.StreamContainerStatsResponse]:
    """The same, one message a container."""
    for container in _selected(core, request.filter):
        yield pb.StreamContainerStatsResponse(container_stats=await measure(core, [container]))
