"""ContainerStats, ListContainerStats, StreamContainerStats: cgroup counters and the size of writable
layers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from cri.server.container_create import data_folder
from cri.server.core import Core
from cri.server.render import select_containers
from cri.server.usage import cpu_usage, io_usage, memory_usage, swap_usage
from cri.state.records import ContainerState
from cri.state.store import Container
from host.cgroups import CgroupStats
from host.diskusage import disk_usage
from proto.cri import runtime_pb2 as pb


def render_stats(
    container: Container,
    stats: CgroupStats,
    *,
    nano_cores: int | None,
    layer: tuple[int, int],
    path: Path,
    at: int,
) -> pb.ContainerStats:
    """The stats message of one container.

    Args:
        nano_cores: as `Rates` has it.
        layer: bytes and inodes of its writable layer, which is at `path`.
        at: when that was, nanoseconds since 1970.
    """
    config = container.config
    message = pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=container.id, metadata=config.metadata, labels=config.labels, annotations=config.annotations
        ),
        cpu=cpu_usage(stats, nano_cores, at),
        memory=memory_usage(stats, at),
        swap=swap_usage(stats, at),
        io=io_usage(stats, at),
    )
    message.writable_layer.timestamp = at
    message.writable_layer.fs_id.mountpoint = str(path)
    message.writable_layer.used_bytes.value, message.writable_layer.inodes_used.value = layer
    return message


def _measure(core: Core, containers: Iterable[Container]) -> list[pb.ContainerStats]:
    found = []
    for container in containers:
        upper = data_folder(core, container.id) / "upper"
        stats, at = core.cgroups.stats(container.record.cgroup), core.now()
        rate = core.rates.nano_cores(container.record.cgroup, stats.cpu_usage_ns, at)
        layer = disk_usage(upper)
        found.append(render_stats(container, stats, nano_cores=rate, layer=layer, path=upper, at=at))
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
