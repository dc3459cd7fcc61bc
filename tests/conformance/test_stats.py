"""Statistics, metrics and limits of pods and containers."""

from __future__ import annotations

import grpc
import pytest
from criclient import CriClient, refused

from proto.cri import runtime_pb2 as pb

LIMITS = pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_shares=512)


async def listed(node: CriClient, **words) -> list[str]:
    request = pb.ListContainerStatsRequest(filter=pb.ContainerStatsFilter(**words))
    return [item.attributes.id for item in (await node.runtime.ListContainerStats(request)).stats]


async def test_a_running_container_uses_something(node: CriClient):
    _, container, _ = await node.launch("sh", "-c", "echo x >/made; exec sleep 1000", labels={"a": "b"})
    stats = (await node.runtime.ContainerStats(pb.ContainerStatsRequest(container_id=container))).stats
    assert (stats.attributes.id, stats.attributes.metadata.name) == (container, "main")
    assert stats.attributes.labels == {"a": "b"}
    assert stats.cpu.timestamp > 0
    assert stats.cpu.usage_core_nano_seconds.value > 0
    assert stats.memory.usage_bytes.value > 0
    assert stats.memory.working_set_bytes.value > 0
    if node.name != "containerd":  # counts writable layers every ten seconds
        assert stats.writable_layer.used_bytes.value > 0
        assert stats.writable_layer.fs_id.mountpoint


async def test_lists_are_filtered_by_all_that_is_given(node: CriClient):
    first, web, _ = await node.launch("sleep", "1000", labels={"tier": "web", "of": "here"})
    _, data, _ = await node.launch("sleep", "1000", labels={"tier": "data", "of": "here"})
    assert {web, data} <= set(await listed(node))
    assert set(await listed(node, label_selector={"of": "here"})) == {web, data}
    assert await listed(node, label_selector={"of": "here", "tier": "data"}) == [data]
    assert await listed(node, id=web) == [web]
    assert await listed(node, pod_sandbox_id=first) == [web]
    assert await listed(node, pod_sandbox_id=first, id=data) == []


async def test_a_pod_counts_its_containers(node: CriClient):
    sandbox, container, config = await node.launch("sleep", "1000")
    stats = (await node.runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=sandbox))).stats
    assert (stats.attributes.id, stats.attributes.metadata) == (sandbox, config.metadata)
    assert [item.attributes.id for item in stats.linux.containers] == [container]
    assert stats.linux.cpu.usage_core_nano_seconds.value > 0
    assert stats.linux.memory.working_set_bytes.value > 0
    assert stats.linux.network.default_interface.name == "eth0"
    assert stats.linux.process.process_count.value >= 1
    wanted = pb.PodSandboxStatsFilter(id=sandbox)
    answer = await node.runtime.ListPodSandboxStats(pb.ListPodSandboxStatsRequest(filter=wanted))
    assert [item.attributes.id for item in answer.stats] == [sandbox]


async def test_limits_may_be_changed_while_it_runs(node: CriClient):
    linux = pb.LinuxContainerConfig(resources=LIMITS)
    _, container, _ = await node.launch("sleep", "1000", linux=linux)
    told = (await node.status(container)).resources.linux
    assert (told.memory_limit_in_bytes, told.cpu_shares) == (64 << 20, 512)
    changed = pb.LinuxContainerResources(memory_limit_in_bytes=96 << 20, memory_swap_limit_in_bytes=96 << 20)
    request = pb.UpdateContainerResourcesRequest(container_id=container, linux=changed)
    await node.runtime.UpdateContainerResources(request)
    told = (await node.status(container)).resources.linux
    assert (told.memory_limit_in_bytes, told.cpu_shares) == (96 << 20, 512)


async def test_what_takes_too_much_memory_is_killed_and_says_so(node: CriClient):
    linux = pb.LinuxContainerConfig(
        resources=pb.LinuxContainerResources(
            memory_limit_in_bytes=15 << 20, memory_swap_limit_in_bytes=15 << 20
        )
    )
    eater = "dd if=/dev/zero of=/dev/null bs=200M count=1"
    _, container, _ = await node.launch("/bin/busybox", *eater.split(), linux=linux)
    ended = await node.wait_exit(container)
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")


@pytest.mark.parametrize("call", ["ContainerStats", "PodSandboxStats"])
async def test_what_is_not_there_has_no_statistics(node: CriClient, call: str):
    request = getattr(pb, f"{call}Request")()
    setattr(request, request.DESCRIPTOR.fields[0].name, "none")
    code, _ = await refused(getattr(node.runtime, call)(request))
    assert code is grpc.StatusCode.NOT_FOUND
