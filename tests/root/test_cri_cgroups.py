"""Control groups over a real CRI socket: what is asked for is in the kernel's files, and holds."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from crinode import BUSYBOX, DRIVER, CriNode

from host.cgroups.driver import load as load_cgroups
from proto.cri import runtime_pb2 as pb

CGROUPS = load_cgroups(DRIVER)


def content(path: str, name: str) -> str:
    """A file of a cgroup, whichever hierarchy it is in; empty where there is none."""
    found = [folder / name for folder in CGROUPS.folders(path) if (folder / name).exists()]
    return found[0].read_text().strip() if found else ""


def limited(**fields: Any) -> pb.LinuxContainerConfig:
    """A container's Linux part with these resources."""
    return pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(**fields))


async def update(node: CriNode, container: str, **fields: Any) -> None:
    """UpdateContainerResources."""
    linux = pb.LinuxContainerResources(**fields)
    request = pb.UpdateContainerResourcesRequest(container_id=container, linux=linux)
    await node.runtime.UpdateContainerResources(request)


async def test_any_user_reads_the_limits_of_its_own_container(node: CriNode) -> None:
    linux = limited(memory_limit_in_bytes=64 << 20)
    linux.security_context.run_as_user.value = 1000
    _, container = await node.launch_with(node.sandbox_config(), "sleep", "1000", linux=linux)
    script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max"
    answer = await node.exec(container, "sh", "-c", f"{script}; id -u")
    assert answer.stdout.split() == [str(64 << 20).encode(), b"1000"]


class TestDevices:
    SCRIPT = (
        "busybox mknod /tmp/log c 1 11; true </tmp/log && echo opened; head -c 2 /dev/zero | busybox wc -c"
    )

    async def test_a_container_opens_only_what_is_listed(self, node: CriNode) -> None:
        _, container, _ = await node.launch("sleep", "1000")
        answer = await node.exec(container, "sh", "-c", self.SCRIPT)
        assert answer.stdout == b"2\n"
        assert b"can't open /tmp/log: Operation not permitted" in answer.stderr

    async def test_a_privileged_one_opens_everything(self, node: CriNode) -> None:
        security = pb.LinuxContainerSecurityContext(privileged=True)
        linux = pb.LinuxContainerConfig(security_context=security)
        config = node.sandbox_config()
        config.linux.security_context.privileged = True
        _, container = await node.launch_with(config, "sleep", "1000", linux=linux)
        answer = await node.exec(container, "sh", "-c", self.SCRIPT)
        assert answer.stdout == b"opened\n2\n"

    async def test_one_that_is_asked_for_has_the_access_asked_for(self, node: CriNode) -> None:
        asked = [pb.Device(host_path="/dev/kmsg", container_path="/dev/log", permissions="w")]
        _, container, _ = await node.launch("sleep", "1000", devices=asked)
        answer = await node.exec(container, "sh", "-c", "cat /dev/log; : >/dev/log && echo written")
        assert b"can't open '/dev/log': Operation not permitted" in answer.stderr
        assert answer.stdout == b"written\n"

    async def test_access_of_other_letters_is_refused(self, node: CriNode) -> None:
        asked = [pb.Device(host_path="/dev/null", container_path="/dev/x", permissions="rx")]
        with pytest.raises(grpc.aio.AioRpcError, match="permissions 'rx'") as caught:
            await node.launch("true", devices=asked)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


class TestLimits:
    async def test_they_are_in_the_kernel_s_files(self, node: CriNode) -> None:
        linux = limited(cpu_shares=512, cpu_quota=50_000, cpu_period=100_000, memory_limit_in_bytes=64 << 20)
        _, container, config = await node.launch("sleep", "1000", linux=linux)
        path = node.cgroup_of(config, container)
        if CGROUPS.mode == "v2":
            assert content(path, "cpu.weight") == "59"
            assert content(path, "cpu.max") == "50000 100000"
            assert content(path, "memory.max") == str(64 << 20)
        else:
            assert content(path, "cpu.shares") == "512"
            assert content(path, "cpu.cfs_quota_us") == "50000"
            assert content(path, "memory.limit_in_bytes") == str(64 << 20)

    async def test_an_update_changes_what_it_names_and_no_more(self, node: CriNode) -> None:
        linux = limited(cpu_quota=50_000, memory_limit_in_bytes=64 << 20, memory_swap_limit_in_bytes=64 << 20)
        _, container, config = await node.launch("sleep", "1000", linux=linux)
        path = node.cgroup_of(config, container)
        both = {"memory_limit_in_bytes": 96 << 20, "memory_swap_limit_in_bytes": 128 << 20}
        await update(node, container, cpu_period=50_000, **both)
        if CGROUPS.mode == "v2":
            assert content(path, "cpu.max") == "50000 50000"
            assert content(path, "memory.max") == str(96 << 20)
            assert content(path, "memory.swap.max") in ("", str(32 << 20))
        else:
            assert content(path, "cpu.cfs_quota_us") == "50000"
            assert content(path, "cpu.cfs_period_us") == "50000"
            assert content(path, "memory.memsw.limit_in_bytes") in ("", str(128 << 20))
        kept = (await node.status(container)).resources.linux
        assert (kept.cpu_quota, kept.cpu_period, kept.memory_limit_in_bytes) == (50_000, 50_000, 96 << 20)

    async def test_memory_in_use_is_not_taken_away(self, node: CriNode) -> None:
        linux = limited(memory_limit_in_bytes=128 << 20)
        script = (
            "x=$(head -c 33554432 /dev/zero | busybox tr '\\0' x); echo full; while :; do sleep 1000; done"
        )
        _, container, config = await node.launch("sh", "-c", script, linux=linux)
        while node.container_log(config) != ["full"]:
            await node.exec(container, "sleep", "0.05")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await update(node, container, memory_limit_in_bytes=4 << 20)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await node.status(container)).state == pb.CONTAINER_RUNNING
        assert (await node.status(container)).resources.linux.memory_limit_in_bytes == 128 << 20

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"unified": {"cgroup.procs": "1"}}, "unified"),
            ({"hugepage_limits": [pb.HugepageLimit(page_size="2MB/..", limit=1)]}, "page_size"),
            ({"memory_limit_in_bytes": 200, "memory_swap_limit_in_bytes": 100}, "memory_swap_limit_in_bytes"),
        ],
    )
    async def test_what_makes_no_sense_is_refused_and_leaves_nothing(
        self, node: CriNode, fields: dict[str, Any], words: str
    ) -> None:
        config = node.sandbox_config()
        sandbox = await node.run_pod(config)
        with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
            await node.create(sandbox, config, "true", linux=limited(**fields))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        parent = CGROUPS.parent_path(config.linux.cgroup_parent)
        assert not CGROUPS.exists(parent) or not _children(parent)
        _, container, _ = await node.launch("sleep", "1000")
        with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
            await update(node, container, **fields)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def _children(path: str) -> list[Path]:
    return [child for folder in CGROUPS.folders(path) if folder.exists() for child in folder.rglob("*/")]


class TestUnified:
    @pytest.mark.skipif(CGROUPS.mode == "v2", reason="v1 and hybrid only")
    async def test_v1_refuses_it_by_name(self, node: CriNode) -> None:
        config = node.sandbox_config()
        sandbox = await node.run_pod(config)
        with pytest.raises(grpc.aio.AioRpcError, match="unified resources need cgroup v2") as caught:
            await node.create(sandbox, config, "true", linux=limited(unified={"memory.high": "1000000"}))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    @pytest.mark.skipif(CGROUPS.mode != "v2", reason="needs cgroup v2")
    async def test_v2_writes_it(self, node: CriNode) -> None:
        asked = {"memory.high": "33554432", "memory.oom.group": "1", "io.weight": "default 50"}
        _, container, config = await node.launch("sleep", "1000", linux=limited(unified=asked))
        path = node.cgroup_of(config, container)
        assert {name: content(path, name) for name in asked} == asked
        await update(node, container, unified={"memory.high": "max"})
        assert content(path, "memory.high") == "max"
        assert dict((await node.status(container)).resources.linux.unified) == asked | {"memory.high": "max"}


class TestOutOfMemory:
    async def test_it_is_the_reason(self, node: CriNode) -> None:
        script = "busybox dd if=/dev/zero of=/dev/null bs=64M count=1"
        linux = limited(memory_limit_in_bytes=16 << 20, memory_swap_limit_in_bytes=16 << 20)
        _, container, _ = await node.launch("sh", "-c", f"{script}; exit 137", linux=linux)
        status = await node.wait_exit(container)
        assert (status.reason, status.exit_code) == ("OOMKilled", 137)

    async def test_an_error_without_it_is_not(self, node: CriNode) -> None:
        _, container, _ = await node.launch("sh", "-c", "exit 137")
        status = await node.wait_exit(container)
        assert (status.reason, status.exit_code) == ("Error", 137)


class TestMembership:
    async def test_every_process_of_a_pod_is_below_its_cgroup(self, node: CriNode) -> None:
        _, container, config = await node.launch("sh", "-c", "sleep 1000 & exec sleep 1000")
        parent = CGROUPS.parent_path(config.linux.cgroup_parent)
        async with asyncio.timeout(60):  # the shell has started, and may not have forked yet
            while len(before := set(CGROUPS.pids(parent))) < 2:
                await asyncio.sleep(0.02)
        answer = await node.exec(container, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & cat /proc/self/cgroup")
        assert answer.exit_code == 0
        after = set(CGROUPS.pids(parent))
        assert len(before) == 2
        assert len(after - before) == 1, "what an exec leaves behind is the pod's too"
        for pid in after:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            places = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}
            used = [tree.name for tree in CGROUPS.trees if tree.name != "unified"] or [""]
            for name in ("", *used) if CGROUPS.mode != "v1" else used:
                key = f"name={name}" if f"name={name}" in places else name
                key = "" if CGROUPS.mode == "v2" else key
                assert f"{places[key]}/".startswith(f"{node.cgroup_of(config, container)}/")

    async def test_nested_cgroups_go_with_the_container(self, node: CriNode) -> None:
        _, container, config = await node.launch("sleep", "1000")
        path = node.cgroup_of(config, container)
        if CGROUPS.mode == "v2":  # no controllers are handed down where processes are
            (CGROUPS.root / path.strip("/") / "inner/deep").mkdir(parents=True)
        else:
            CGROUPS.create(f"{path}/inner/deep")
        pid = CGROUPS.pids(path)[0]
        CGROUPS.attach(f"{path}/inner/deep", pid)
        await node.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
        assert not CGROUPS.exists(path)
        assert not Path(f"/proc/{pid}").exists()


class TestFigures:
    BURN = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"

    async def test_stats_grow_and_have_a_rate(self, node: CriNode) -> None:
        sandbox, container, _ = await node.launch("sleep", "1000")
        request = pb.ContainerStatsRequest(container_id=container)
        first = (await node.runtime.ContainerStats(request)).stats
        assert not first.cpu.HasField("usage_nano_cores"), "one look gives no rate"
        await node.exec(container, "sh", "-c", f"{self.BURN}; sleep 1", timeout=60)
        second = (await node.runtime.ContainerStats(request)).stats
        used = second.cpu.usage_core_nano_seconds.value - first.cpu.usage_core_nano_seconds.value
        assert used > 10_000_000
        assert second.cpu.usage_nano_cores.value == used * 10**9 // (
            second.cpu.timestamp - first.cpu.timestamp
        )
        assert second.memory.working_set_bytes.value <= second.memory.usage_bytes.value
        pod = (await node.runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=sandbox))).stats
        assert pod.linux.cpu.usage_core_nano_seconds.value >= second.cpu.usage_core_nano_seconds.value
        assert pod.linux.process.process_count.value >= 1

    async def test_pressure_where_the_kernel_counts_it(self, node: CriNode) -> None:
        _, container, config = await node.launch("sleep", "1000")
        stats = (await node.runtime.ContainerStats(pb.ContainerStatsRequest(container_id=container))).stats
        counted = bool(content(node.cgroup_of(config, container), "cpu.pressure"))
        assert [stats.cpu.HasField("psi"), stats.memory.HasField("psi"), stats.io.HasField("psi")] == [
            counted
        ] * 3

    async def test_available_memory_and_swap_count_from_the_limits(self, node: CriNode) -> None:
        linux = limited(memory_limit_in_bytes=64 << 20, memory_swap_limit_in_bytes=96 << 20)
        _, container, config = await node.launch("sleep", "1000", linux=linux)
        stats = (await node.runtime.ContainerStats(pb.ContainerStatsRequest(container_id=container))).stats
        memory = stats.memory
        assert memory.available_bytes.value + memory.working_set_bytes.value == 64 << 20
        name = "memory.swap.max" if CGROUPS.mode == "v2" else "memory.memsw.limit_in_bytes"
        counted = bool(content(node.cgroup_of(config, container), name))
        assert stats.swap.swap_available_bytes.value == (32 << 20 if counted else 0)

    async def test_lists_are_filtered(self, node: CriNode) -> None:
        sandbox, container, _ = await node.launch("sleep", "1000", labels={"tier": "web"})
        other, _, _ = await node.launch("sleep", "1000")
        asked = pb.ContainerStatsFilter(pod_sandbox_id=sandbox, label_selector={"tier": "web"})
        request = pb.ListContainerStatsRequest(filter=asked)
        found = (await node.runtime.ListContainerStats(request)).stats
        assert [item.attributes.id for item in found] == [container]
        pods = pb.ListPodSandboxStatsRequest(filter=pb.PodSandboxStatsFilter(id=other))
        listed = (await node.runtime.ListPodSandboxStats(pods)).stats
        assert [item.attributes.id for item in listed] == [other]

    async def test_metrics_are_those_described(self, node: CriNode) -> None:
        sandbox, container, config = await node.launch("sh", "-c", "sleep 1000 & exec sleep 1000")
        described = (await node.runtime.ListMetricDescriptors(pb.ListMetricDescriptorsRequest())).descriptors
        keys = {item.name: list(item.label_keys) for item in described}
        assert len(keys) == len(described)
        (pod,) = (await node.runtime.ListPodSandboxMetrics(pb.ListPodSandboxMetricsRequest())).pod_metrics
        (own,) = pod.container_metrics
        assert (pod.pod_sandbox_id, own.container_id) == (sandbox, container)
        found = {}
        for metric in (*pod.metrics, *own.metrics):
            labels = dict(zip(keys[metric.name], metric.label_values, strict=True))
            assert (labels["pod"], labels["namespace"]) == (config.metadata.name, "default")
            found[metric.name, *metric.label_values[2:]] = metric.value.value
        mine = ("main", container, BUSYBOX)
        assert found["container_processes", *mine] == 2
        assert found["container_file_descriptors", *mine] >= 6
        assert found["container_memory_usage_bytes", *mine] > 0
        assert found["container_start_time_seconds", *mine] > 1_600_000_000
        assert found["container_ulimits_soft", *mine, "max_open_files"] > 0
        whole = ("", sandbox, "")
        assert found["container_processes", *whole] == 2
        assert found["container_network_transmit_bytes_total", *whole, "eth0"] >= 0
        stream = node.runtime.StreamPodSandboxMetrics(pb.StreamPodSandboxMetricsRequest())
        streamed = [item.pod_sandbox_metrics[0].pod_sandbox_id async for item in stream]
        assert streamed == [sandbox]
