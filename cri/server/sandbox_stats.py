"""PodSandboxStats, ListPodSandboxStats, StreamPodSandboxStats: the pod's cgroup, its interfaces, its
containers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from cri.network import IFNAME
from cri.server.container_stats import cpu_usage, measure, memory_usage
from cri.server.core import Core
from cri.server.render import select_sandboxes
from cri.state.records import ContainerState, SandboxState
from cri.state.store import Sandbox
from host.cgroups import CgroupStats
from host.errors import HostError
from proto.cri import runtime_pb2 as pb


def parse_net_dev(text: str) -> dict[str, tuple[int, int, int, int]]:
    """/proc/<pid>/net/dev: received bytes and errors, sent bytes and errors, by interface (proc(5))."""
    found = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        numbers = rest.split()
        if colon and len(numbers) >= 11 and all(word.isdigit() for word in numbers):
            found[name.strip()] = (int(numbers[0]), int(numbers[2]), int(numbers[8]), int(numbers[10]))
    return found


def network_usage(interfaces: dict[str, tuple[int, int, int, int]], at: int) -> pb.NetworkUsage:
    """The counters of the pod's interfaces, loopback left out."""
    usage = pb.NetworkUsage(timestamp=at)
    for name, (received, receive_errors, sent, send_errors) in sorted(interfaces.items()):
        if name == "lo":
            continue
        one = pb.NetworkInterfaceUsage(
            name=name,
            rx_bytes=pb.UInt64Value(value=received),
            rx_errors=pb.UInt64Value(value=receive_errors),
            tx_bytes=pb.UInt64Value(value=sent),
            tx_errors=pb.UInt64Value(value=send_errors),
        )
        if name == IFNAME:
            usage.default_interface.CopyFrom(one)
        else:
            usage.interfaces.append(one)
    return usage


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
    parent, stats, at = config.linux.cgroup_parent, CgroupStats(), core.now()
    if parent:
        stats = await asyncio.to_thread(core.cgroups.stats, parent)
    message.linux.cpu.CopyFrom(cpu_usage(stats, at))
    message.linux.memory.CopyFrom(memory_usage(stats, at))
    message.linux.process.timestamp = at
    message.linux.process.process_count.value = stats.pids
    if sandbox.record.netns and sandbox.record.state is SandboxState.READY:
        message.linux.network.CopyFrom(network_usage(await _interfaces(core, sandbox), at))
    return message


async def _interfaces(core: Core, sandbox: Sandbox) -> dict[str, tuple[int, int, int, int]]:
    try:
        facts = await core.runtime.sandbox_facts(sandbox.id)
        with open(f"/proc/{facts.pid}/net/dev", encoding="ascii") as file:  # noqa: ASYNC230  (proc never blocks)
            return parse_net_dev(file.read())
    except (HostError, OSError):
        return {}  # it ended meanwhile


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
