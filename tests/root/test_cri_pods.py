"""Pods with each runtime handler, our own and the external ones: life, configuration, volumes, statistics."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
from criclient import refused
from crinode import VOLUMES, CriNode

from proto.cri import runtime_pb2 as pb


async def test_a_pod_lives_and_goes(node: CriNode, handler: str):
    sandbox, container, config = await node.launch(
        "sh", "-c", "echo out; echo err >&2; hostname; exec sleep 1000"
    )
    status = (await node.runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox))).status
    assert status.state == pb.SANDBOX_READY
    assert status.network.ip.startswith("10.99.0.")
    assert status.metadata == config.metadata
    running = await node.status(container)
    assert running.state == pb.CONTAINER_RUNNING
    assert 0 < running.created_at <= running.started_at
    await node.runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=1))
    ended = await node.status(container)
    assert (ended.state, ended.exit_code, ended.reason) == (pb.CONTAINER_EXITED, 137, "Error")
    assert ended.finished_at >= ended.started_at
    assert sorted(node.container_log(config)) == ["err", "out", "pod"]
    await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    code, _ = await refused(node.status(container))
    assert code is grpc.StatusCode.NOT_FOUND
    assert not (node.folder / "root" / "containers" / container).exists()
    assert not (node.folder / "netns" / f"cni-{sandbox}").exists()


async def test_exit_codes_and_start_errors(node: CriNode, handler: str):
    _, container, _ = await node.launch("sh", "-c", "exit 7")
    assert (await node.wait_exit(container)).exit_code == 7
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    container = await node.create(sandbox, config, "/no/such/program")
    code, words = await refused(node.runtime.StartContainer(pb.StartContainerRequest(container_id=container)))
    assert code is grpc.StatusCode.UNKNOWN
    assert "/no/such/program" in words
    status = await node.status(container)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 128, "StartError")


async def test_the_configuration_reaches_the_container(node: CriNode, handler: str, tmp_path: Path):
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("from the host")
    linux = pb.LinuxContainerConfig()
    linux.security_context.run_as_user.value = 8
    linux.security_context.run_as_group.value = 9
    linux.security_context.supplemental_groups.append(77)
    linux.security_context.readonly_rootfs = True
    linux.security_context.no_new_privs = True
    linux.security_context.seccomp.profile_type = pb.SecurityProfile.RuntimeDefault
    _, container, _ = await node.launch(
        "sleep",
        "1000",
        envs=[pb.KeyValue(key="COLOUR", value=b"red")],
        mounts=[pb.Mount(container_path="/host", host_path=str(tmp_path), readonly=True)],
        working_dir="/tmp",
        linux=linux,
    )

    async def inside(line: str) -> str:
        answer = await node.exec(container, "sh", "-c", line)
        return (answer.stdout + answer.stderr).decode().strip()

    assert await inside("id -u; id -g; id -G") == "8\n9\n9 50 77"
    assert await inside("echo $COLOUR $FROM") == "red image"
    assert await inside("pwd") == "/tmp"
    assert await inside("cat /host/file") == "from the host"
    assert "Read-only" in await inside("echo x >/host/file; echo x >/made")
    assert (
        await inside("cat /etc/resolv.conf") == "search cluster.local\nnameserver 10.96.0.10\noptions ndots:5"
    )
    assert await inside("cat /etc/hostname") == "pod"
    assert "NoNewPrivs:\t1" in await inside("cat /proc/self/status")
    assert "Seccomp:\t2" in await inside("cat /proc/self/status")
    user = (await node.status(container)).user.linux
    assert (user.uid, user.gid, list(user.supplemental_groups)) == (8, 9, [9, 50, 77])


async def test_an_image_volume_is_filled_and_separate(node: CriNode, handler: str):
    _, first, _ = await node.launch("sleep", "1000", image=VOLUMES)
    _, second, _ = await node.launch("sleep", "1000", image=VOLUMES)
    assert (await node.exec(first, "cat", "/data/file")).stdout == b"from the image"
    await node.exec(first, "sh", "-c", "echo changed >/data/file")
    assert (await node.exec(second, "cat", "/data/file")).stdout == b"from the image"
    link = Path(node.folder, "root/containers", first, "volume-0/link")
    assert os.readlink(link) == "/etc/passwd"


async def test_an_image_can_be_a_volume(node: CriNode, handler: str):
    image = pb.ImageSpec(image=VOLUMES)
    mounts = [
        pb.Mount(container_path="/whole", image=image, readonly=True),
        pb.Mount(container_path="/part", image=image, image_sub_path="data", readonly=True),
    ]
    sandbox, container, config = await node.launch("sleep", "1000", mounts=mounts)
    assert (
        await node.exec(container, "cat", "/whole/data/file", "/part/file")
    ).stdout == b"from the image" * 2
    assert b"Read-only" in (await node.exec(container, "sh", "-c", "echo x >/whole/new")).stderr
    assert (await node.exec(container, "/whole/bin/busybox", "echo", "runs")).stdout == b"runs\n"
    missing = [pb.Mount(container_path="/x", image=image, image_sub_path="none", readonly=True)]
    code, words = await refused(node.create(sandbox, config, "sleep", "1", name="other", mounts=missing))
    assert (code, "none" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    assert str(node.folder / "root" / "containers") not in Path("/proc/self/mountinfo").read_text()


async def test_repeated_requests_give_the_same_object(node: CriNode, handler: str):
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    assert await node.run_pod(config) == sandbox
    container = await node.create(sandbox, config, "sleep", "9")
    assert await node.create(sandbox, config, "sleep", "9") == container
    start = pb.StartContainerRequest(container_id=container)
    await node.runtime.StartContainer(start)
    code, _ = await refused(node.runtime.StartContainer(start))
    assert code is grpc.StatusCode.FAILED_PRECONDITION


async def test_events_come_in_order(node: CriNode, handler: str):
    stream = node.runtime.GetContainerEvents(pb.GetEventsRequest())
    await stream.wait_for_connection()
    sandbox, container, _ = await node.launch("sh", "-c", "exit 3")
    seen = []
    while len(seen) < 5:
        event = await stream.read()
        seen.append((event.container_id, event.container_event_type))
    assert seen == [
        (sandbox, pb.CONTAINER_CREATED_EVENT),
        (sandbox, pb.CONTAINER_STARTED_EVENT),
        (container, pb.CONTAINER_CREATED_EVENT),
        (container, pb.CONTAINER_STARTED_EVENT),
        (container, pb.CONTAINER_STOPPED_EVENT),
    ]
    assert event.containers_statuses[0].exit_code == 3
    assert event.pod_sandbox_status.id == sandbox
    stream.cancel()


async def test_exec_sync_limits_output_and_time(node: CriNode, handler: str):
    _, container, _ = await node.launch("sleep", "1000")
    answer = await node.exec(container, "sh", "-c", "echo hi; echo bad >&2; exit 5")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"hi\n", b"bad\n", 5)
    code, _ = await refused(node.exec(container, "sleep", "100", timeout=1))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_stats_and_resources(node: CriNode, handler: str):
    linux = pb.LinuxContainerConfig(
        resources=pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20, cpu_shares=512)
    )
    sandbox, container, _ = await node.launch("sh", "-c", "echo x >/made; exec sleep 1000", linux=linux)
    stats = (await node.runtime.ContainerStats(pb.ContainerStatsRequest(container_id=container))).stats
    assert stats.memory.usage_bytes.value > 0
    assert stats.cpu.usage_core_nano_seconds.value > 0
    assert stats.writable_layer.inodes_used.value > 0
    pod = (await node.runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=sandbox))).stats
    assert pod.linux.network.default_interface.name == "eth0"
    assert [item.attributes.id for item in pod.linux.containers] == [container]
    await node.runtime.UpdateContainerResources(
        pb.UpdateContainerResourcesRequest(
            container_id=container, linux=pb.LinuxContainerResources(memory_limit_in_bytes=96 << 20)
        )
    )
    assert (await node.status(container)).resources.linux.memory_limit_in_bytes == 96 << 20
    assert (await node.status(container)).resources.linux.cpu_shares == 512


async def test_the_stop_signal_of_the_pod_is_used(node: CriNode, handler: str):
    script = "trap 'exit 33' USR1; echo ready; while true; do sleep 0.05; done"
    _, container, config = await node.launch("sh", "-c", script, stop_signal=pb.SIGUSR1)
    while not node.container_log(config):
        await node.exec(container, "sleep", "0.05")
    await node.runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=10))
    assert (await node.status(container)).exit_code == 33
