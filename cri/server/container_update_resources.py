"""UpdateContainerResources: new cgroup limits for a container, created or running."""

from __future__ import annotations

import asyncio

import msgspec

from cri.server.container_check import check_resources
from cri.server.container_plan import resources_of
from cri.server.container_prepare import settled
from cri.server.core import Core
from cri.server.errors import FailedPrecondition
from cri.state.records import ContainerState
from host.errors import NotFound
from proto.cri import runtime_pb2 as pb

_NUMBERS = (
    "cpu_period",
    "cpu_quota",
    "cpu_shares",
    "memory_limit_in_bytes",
    "memory_swap_limit_in_bytes",
    "oom_score_adj",
    "cpuset_cpus",
    "cpuset_mems",
)


def merged(old: pb.LinuxContainerResources, new: pb.LinuxContainerResources) -> pb.LinuxContainerResources:
    """The resources after an update: what the request gives replaces, what it leaves at zero stays."""
    result = pb.LinuxContainerResources()
    result.CopyFrom(old)
    for name in _NUMBERS:
        if value := getattr(new, name):
            setattr(result, name, value)
    if new.hugepage_limits:
        del result.hugepage_limits[:]
        result.hugepage_limits.extend(new.hugepage_limits)
    result.unified.update(new.unified)
    return result


async def update_container_resources(
    core: Core, request: pb.UpdateContainerResourcesRequest
) -> pb.UpdateContainerResourcesResponse:
    """Change a container's limits, in the kernel first and then on record.

    Raises:
        UnknownId: no such container.
        InputError: a limit that makes no sense.
        FailedPrecondition: it has ended.
        HostError: the kernel refused, for instance a memory limit below what is used.
    """
    container = core.store.container(request.container_id)
    check_resources(request.linux)
    await settled(core, container)
    async with container.lock:
        record = container.record
        if record.state not in (ContainerState.CREATED, ContainerState.RUNNING):
            raise FailedPrecondition(f"container {record.id} is {record.state.value}")
        try:
            await asyncio.to_thread(core.cgroups.update, record.cgroup, resources_of(request.linux))
        except NotFound as exc:
            raise FailedPrecondition(f"container {record.id} has ended") from exc
        resources = merged(container.config.linux.resources, request.linux)
        container.config.linux.resources.CopyFrom(resources)
        data = container.config.SerializeToString()
        core.store.put_container(container, msgspec.structs.replace(container.record, config=data))
    return pb.UpdateContainerResourcesResponse()
