"""Pods over a real CRI socket: life, configuration, idempotence, filters, statistics."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import grpc
import pytest
from crinode import VOLUMES, CriNode

from host import processes
from proto.cri import runtime_pb2 as pb


async def refused(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def test_version_and_status(node: CriNode):
    version = await node.runtime.Version(pb.VersionRequest())
    assert (version.runtime_name, version.runtime_api_version) == ("nodelet-cri", "v1")
    status = (await node.runtime.Status(pb.StatusRequest(verbose=True))).status
    assert [(item.type, item.status) for item in status.conditions] == [
        ("RuntimeReady", True),
        ("NetworkReady", True),
    ]
    config = await node.runtime.RuntimeConfig(pb.RuntimeConfigRequest())
    assert config.linux.cgroup_driver == pb.CGROUPFS


async def test_the_network_is_not_ready_without_a_configuration(node: CriNode):
    conf = node.folder / "net.d" / "10-nodelet.conflist"
    away = conf.rename(node.folder / "away")
    try:
        network = (await node.runtime.Status(pb.StatusRequest())).status.conditions[1]
        assert not network.status
        assert "cni config uninitialized" in network.message
        code, words = await refused(node.run_pod(node.sandbox_config()))
        assert code is grpc.StatusCode.UNKNOWN
        assert "cni config uninitialized" in words
    finally:
        away.rename(conf)
    assert (await node.runtime.Status(pb.StatusRequest())).status.conditions[1].status


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
        pb.Mount(container_path="/whole", image=image),
        pb.Mount(container_path="/part", image=image, image_sub_path="data"),
    ]
    sandbox, container, config = await node.launch("sleep", "1000", mounts=mounts)
    assert (
        await node.exec(container, "cat", "/whole/data/file", "/part/file")
    ).stdout == b"from the image" * 2
    assert b"Read-only" in (await node.exec(container, "sh", "-c", "echo x >/whole/new")).stderr
    code, words = await refused(node.exec(container, "/whole/bin/busybox"))
    assert "permission denied" in words.lower()
    missing = [pb.Mount(container_path="/x", image=image, image_sub_path="none")]
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


async def test_stop_and_remove_of_nothing_succeed(node: CriNode):
    await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id="none"))
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id="none"))
    await node.runtime.StopContainer(pb.StopContainerRequest(container_id="none"))
    await node.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id="none"))
    code, _ = await refused(node.runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id="none")))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_lists_are_filtered(node: CriNode):
    sandbox, container, _ = await node.launch("sleep", "1000", labels={"tier": "web"})
    other = await node.run_pod(node.sandbox_config("other"))

    async def listed(**words) -> list[str]:
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(**words))
        return [item.id for item in (await node.runtime.ListContainers(request)).containers]

    assert await listed() == [container]
    assert await listed(id=container[:13], label_selector={"tier": "web"}) == [container]
    assert await listed(pod_sandbox_id=other) == []
    assert await listed(state=pb.ContainerStateValue(state=pb.CONTAINER_EXITED)) == []
    request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector={"app": "other"}))
    assert [item.id for item in (await node.runtime.ListPodSandbox(request)).items] == [other]
    await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    ready = pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=pb.SANDBOX_READY))
    items = (await node.runtime.ListPodSandbox(pb.ListPodSandboxRequest(filter=ready))).items
    assert [item.id for item in items] == [other]


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


async def test_bad_requests_name_what_is_wrong(node: CriNode):
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    flying = pb.LinuxContainerSecurityContext(capabilities=pb.Capability(add_capabilities=["FLY"]))
    nameless = pb.LinuxContainerSecurityContext(
        seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost)
    )
    for words, fields in (
        ("log_path", {"log_path": "../../etc/passwd"}),
        ("capability", {"linux": pb.LinuxContainerConfig(security_context=flying)}),
        ("localhost_ref", {"linux": pb.LinuxContainerConfig(security_context=nameless)}),
        ("environment", {"envs": [pb.KeyValue(key="A=B", value=b"c")]}),
    ):
        container = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="bad"), image=pb.ImageSpec(image="registry.test/busybox:1")
        )
        container.MergeFrom(pb.ContainerConfig(**fields))
        request = pb.CreateContainerRequest(pod_sandbox_id=sandbox, config=container, sandbox_config=config)
        code, text = await refused(node.runtime.CreateContainer(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert words in text
    code, text = await refused(node.create(sandbox, config, image="registry.test/none:1"))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_a_call_that_is_not_done_says_so(node: CriNode):
    code, words = await refused(node.runtime.CheckpointContainer(pb.CheckpointContainerRequest()))
    assert (code, words[:19]) == (grpc.StatusCode.UNIMPLEMENTED, "CheckpointContainer")


async def test_the_stop_signal_of_the_pod_is_used(node: CriNode, handler: str):
    script = "trap 'exit 33' USR1; echo ready; while true; do sleep 0.05; done"
    _, container, config = await node.launch("sh", "-c", script, stop_signal=pb.SIGUSR1)
    while not node.container_log(config):
        await node.exec(container, "sleep", "0.05")
    await node.runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=10))
    assert (await node.status(container)).exit_code == 33


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ([], "another program listens on"),
        (["--listen=unix://{folder}/other.sock"], "another nodelet-cri uses"),
    ],
    ids=["socket", "state"],
)
async def test_a_second_daemon_on_the_same_files_is_refused(node: CriNode, change: list[str], words: str):
    extra = [flag.format(folder=node.folder) for flag in change]
    argv = [sys.executable, "-m", "cri.main", *node.arguments, *extra]
    done = await processes.run_async(argv, timeout=20, check=False)
    assert done.returncode == 2
    assert done.stderr.decode().startswith(f"nodelet-cri: {words} ")
    assert done.stderr.count(b"\n") == 1
