"""PodSandboxStats, ListPodSandboxStats, StreamPodSandboxStats: the pod's cgroup, its interfaces, its
containers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence

from cri.network import IFNAME
from cri.server.container_stats import measure
from cri.server.core import Core
from cri.server.netdev import LinkCounters, links_of
from cri.server.render import select_sandboxes
from cri.server.usage import cpu_usage, io_usage, memory_usage, total
from cri.state.records import ContainerState, SandboxState
from cri.state.store import Sandbox
from host.cgroups import Cgroups, CgroupStats
from proto.cri import runtime_pb2 as pb


def network_usage(links: Iterable[LinkCounters], at: int) -> pb.NetworkUsage:
    """The counters of the pod's interfaces."""
    usage = pb.NetworkUsage(timestamp=at)
    for link in links:
        one = pb.NetworkInterfaceUsage(
            name=link.name,
            rx_bytes=pb.UInt64Value(value=link.rx_bytes),
            rx_errors=pb.UInt64Value(value=link.rx_errors),
            tx_bytes=pb.UInt64Value(value=link.tx_bytes),
            tx_errors=pb.UInt64Value(value=link.tx_errors),
        )
        if link.name == IFNAME:
            usage.default_interface.CopyFrom(one)
        else:
            usage.interfaces.append(one)
    return usage


def _used(cgroups: Cgroups, paths: Sequence[str]) -> CgroupStats:
    return total([cgroups.stats(path) for path in paths])


async def _measure(core: Core, sandbox: Sandbox) -> pb.PodSandboxStats:
    config = sandbox.config
    message = pb.PodSandboxStats(
        attributes=pb.PodSandboxAttributes(
            id=sandbox.id, metadata=config.metadata, labels=config.labels, annotations=config.annotations
        )
    )
    alive = (ContainerState.CREATED, ContainerState.RUNNING)
    containers = [item for item in core.store.containers_of(sandbox.id) if item.record.state in alive]
    message.linux.containers.extend(await measure(core, containers))
    # A pod without a cgroup of its own (crictl's) is the sum of its containers.
    parent = core.cgroups.pod_path(config.linux.cgroup_parent)
    cgroups = [parent] if parent else [item.record.cgroup for item in containers]
    stats, at = await asyncio.to_thread(_used, core.cgroups, cgroups), core.now()
    rate = core.rates.nano_cores(parent, stats.cpu_usage_ns, at) if parent else None
    message.linux.cpu.CopyFrom(cpu_usage(stats, rate, at))
    message.linux.memory.CopyFrom(memory_usage(stats, at))
    message.linux.io.CopyFrom(io_usage(stats, at))
    message.linux.process.timestamp = at
    message.linux.process.process_count.value = stats.pids
    if sandbox.record.netns and sandbox.record.state is SandboxState.READY:
        message.linux.network.CopyFrom(network_usage(await links_of(core, sandbox), at))
    return message


async def pod_sandbox_stats(core: Core, request: pb.PodSandboxStatsRequest) -> pb.PodSandboxStatsResponse:
    """The stats of one sandbox.

    Raises:
        UnknownId: no such sandbox.
    """
    sandbox = core.store.sandbox(request.pod_sandbox_id)
    return pb.PodSandboxStatsResponse(stats=await _measure(core, sandbox))


def _selected(core: Core, wanted: pb.PodSandboxStatsFilter) -> Iterable[Sandbox]:
    state = pb.PodSandboxStateValue(state=pb.SANDBOX_READY)
    asked = pb.PodSandboxFilter(id=wanted.id, label_selector=wanted.label_selector, state=state)
    return select_sandboxes(core.store.sandboxes.values(), asked)


async def list_pod_sandbox_stats(
    core: Core, request: pb.ListPodSandboxStatsRequest
) -> pb.ListPodSandboxStatsResponse:
    """The stats of the ready sandboxes a filter asks for."""
    stats = [await _measure(core, sandbox) for sandbox in _selected(core, request.filter)]
    return pb.ListPodSandboxStatsResponse(stats=stats)


async def stream_pod_sandbox_stats(
    core: Core, request: pb.StreamPodSandboxStatsRequest
) -> AsyncIterator[pb.StreamPodSandboxStatsResponse]:
    """The same, one message a sandbox."""
    for sandbox in _selected(core, request.filter):
        yield pb.StreamPodSandboxStatsResponse(pod_sandbox_stats=[await _measure(core, sandbox)])
