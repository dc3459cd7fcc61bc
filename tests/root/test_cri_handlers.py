"""What a pod may count on whatever its runtime handler is, and what is told about the handlers there are."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import crileaks
import grpc
import pytest
from crinode import EXTERNAL, CriNode
from test_cri_pods import refused
from wsclient import open_stream

from host import helpers, syscalls
from proto.cri import runtime_pb2 as pb

PRIVATE = pb.PROPAGATION_PRIVATE


def secured(**fields) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**fields))


async def sh(node: CriNode, container: str, script: str) -> str:
    answer = await node.exec(container, "sh", "-c", script)
    assert answer.exit_code == 0, answer
    return answer.stdout.decode()


async def status_words(node: CriNode, container: str, process: str = "1") -> dict[str, list[str]]:
    """/proc/<process>/status of the container, by first word."""
    lines = (await sh(node, container, f"cat /proc/{process}/status")).splitlines()
    return {line.split(":")[0]: line.split()[1:] for line in lines}


async def test_an_unknown_handler_is_refused_with_the_known_ones(node: CriNode):
    request = pb.RunPodSandboxRequest(config=node.sandbox_config(), runtime_handler="kata")
    code, words = await refused(node.runtime.RunPodSandbox(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "no runtime for 'kata' is configured" in words
    assert all(name in words for name in EXTERNAL)
    assert crileaks.of_pods(node.picture()) == []


async def test_status_lists_every_handler_with_what_it_says_of_itself(node: CriNode):
    handlers = (await node.runtime.Status(pb.StatusRequest())).runtime_handlers
    found = {item.name: item.features.recursive_read_only_mounts for item in handlers}
    assert found.pop("") is True
    expected = {}
    for name, path in EXTERNAL.items():
        done = await helpers.run_async([path, "features"], check=False)
        expected[name] = done.returncode == 0 and "rro" in json.loads(done.stdout).get("mountOptions", [])
    assert found == expected


async def test_the_handler_of_a_pod_is_on_record(node: CriNode, handler: str):
    sandbox = await node.run_pod(node.sandbox_config())
    await node.restart()
    status = await node.runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox))
    assert status.status.runtime_handler == handler


async def test_privileges_are_put_down(node: CriNode, handler: str):
    linux = secured(
        run_as_user=pb.Int64Value(value=8),
        run_as_group=pb.Int64Value(value=9),
        supplemental_groups=[77],
        no_new_privs=True,
        readonly_rootfs=True,
        capabilities=pb.Capability(drop_capabilities=["ALL"], add_capabilities=["NET_BIND_SERVICE"]),
        masked_paths=["/proc/kcore", "/sys/firmware"],
        readonly_paths=["/proc/sys"],
        seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
    )
    _, container, _ = await node.launch("sleep", "1000", linux=linux)
    for process in ("1", "self"):
        found = await status_words(node, container, process)
        assert found["Uid"] == ["8"] * 4
        assert found["Gid"] == ["9"] * 4
        assert set(found["Groups"]) == {"9", "50", "77"}
        assert found["CapEff"] == found["CapPrm"] == found["CapAmb"] == ["0" * 16]
        assert int(found["CapBnd"][0], 16) == 1 << 10
        assert (found["NoNewPrivs"], found["Seccomp"]) == (["1"], ["2"])
    script = "echo x >/new; echo x >/proc/sys/kernel/domainname; head -c1 /proc/kcore; ls /sys/firmware"
    answer = await node.exec(container, "sh", "-c", script)
    assert answer.stderr.count(b"Read-only file system") == 2
    assert answer.stdout == b""
    answer = await node.exec(container, "sh", "-c", "busybox unshare -U true")
    assert b"Operation not permitted" in answer.stderr


async def test_a_root_container_has_the_default_capabilities_and_devices(node: CriNode, handler: str):
    device = pb.Device(host_path="/dev/null", container_path="/dev/other", permissions="r")
    _, container, _ = await node.launch("sleep", "1000", devices=[device], linux=secured())
    found = await status_words(node, container)
    assert found["CapEff"] == found["CapPrm"] == found["CapBnd"] == ["00000000a80425fb"]
    assert found["CapInh"] == found["CapAmb"] == ["0" * 16]
    assert await sh(node, container, "cat /dev/other; busybox stat -c %t:%T /dev/other") == "1:3\n"
    answer = await node.exec(container, "sh", "-c", "busybox mknod /tmp/disk b 254 0 && head -c1 /tmp/disk")
    assert b"Operation not permitted" in answer.stderr


async def test_cgroup_limits_hold_and_change(node: CriNode, handler: str):
    linux = pb.LinuxContainerConfig(
        resources=pb.LinuxContainerResources(
            memory_limit_in_bytes=64 << 20,
            oom_score_adj=500,
            # As kubelets send it for every pod, also to kernels that have no controller for it.
            hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=0)],
        )
    )
    _, container, _ = await node.launch("sleep", "1000", linux=linux)
    assert await sh(node, container, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj") == "500\n500\n"
    assert (
        await sh(node, container, "cat /proc/self/cgroup | busybox cut -d: -f3 | busybox sort -u | head -n1")
        == "/\n"
    )
    script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max"
    assert await sh(node, container, script) == f"{64 << 20}\n"
    await node.runtime.UpdateContainerResources(
        pb.UpdateContainerResourcesRequest(
            container_id=container,
            linux=pb.LinuxContainerResources(
                memory_limit_in_bytes=96 << 20, memory_swap_limit_in_bytes=96 << 20
            ),
        )
    )
    assert await sh(node, container, script) == f"{96 << 20}\n"


async def test_a_container_killed_for_memory_says_so(node: CriNode, handler: str):
    resources = pb.LinuxContainerResources(
        memory_limit_in_bytes=16 << 20, memory_swap_limit_in_bytes=16 << 20
    )
    script = "busybox dd if=/dev/zero of=/dev/null bs=64M count=1"
    _, container, _ = await node.launch(
        "sh", "-c", f"exec {script}", linux=pb.LinuxContainerConfig(resources=resources)
    )
    status = await node.wait_exit(container)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


async def test_a_process_namespace_can_be_shared(node: CriNode, handler: str):
    config = node.sandbox_config()
    config.linux.security_context.namespace_options.pid = pb.POD
    sandbox, first = await node.launch_with(config, "sleep", "1111")
    options = pb.NamespaceOption(pid=pb.POD)
    await node.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=first))
    first = await node.create(
        sandbox, config, "sleep", "1111", name="first", linux=secured(namespace_options=options)
    )
    second = await node.create(
        sandbox, config, "sleep", "2222", name="second", linux=secured(namespace_options=options)
    )
    for container in (first, second):
        await node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    seen = await sh(node, second, "cat /proc/[0-9]*/cmdline")
    assert "1111" in seen
    assert "2222" in seen
    target = pb.NamespaceOption(pid=pb.TARGET, target_id=first)
    third = await node.create(
        sandbox, config, "sleep", "3333", name="third", linux=secured(namespace_options=target)
    )
    await node.runtime.StartContainer(pb.StartContainerRequest(container_id=third))
    assert "1111" in await sh(node, third, "cat /proc/[0-9]*/cmdline")


async def test_the_nodes_own_namespaces_can_be_used(node: CriNode, handler: str):
    config = node.sandbox_config()
    options = config.linux.security_context.namespace_options
    options.network = options.pid = options.ipc = pb.NODE
    wanted = pb.NamespaceOption(network=pb.NODE, pid=pb.NODE, ipc=pb.NODE)
    _, container = await node.launch_with(config, "sleep", "1000", linux=secured(namespace_options=wanted))
    names = ("net", "pid", "ipc", "uts")
    inside = await sh(
        node,
        container,
        " ".join(f"readlink /proc/self/ns/{name};" for name in names).replace("readlink", "busybox readlink"),
    )
    assert inside.split() == [os.readlink(f"/proc/self/ns/{name}") for name in names]


async def test_volumes_propagate_as_asked(node: CriNode, handler: str, tmp_path: Path):
    tmp_path.chmod(0o755)
    for name in ("shared", "slave", "private"):
        folder = tmp_path / name
        (folder / "below").mkdir(parents=True)
        syscalls.mount(b"none", bytes(folder), b"tmpfs")
        syscalls.mount(b"none", bytes(folder), b"", syscalls.MS_SHARED)
        (folder / "late").mkdir()
        (folder / "inner").mkdir()
        syscalls.mount(b"none", bytes(folder / "inner"), b"tmpfs")
    try:
        kinds = {
            "shared": pb.PROPAGATION_BIDIRECTIONAL,
            "slave": pb.PROPAGATION_HOST_TO_CONTAINER,
            "private": PRIVATE,
        }
        mounts = [
            pb.Mount(
                container_path=f"/{name}",
                host_path=str(tmp_path / name),
                propagation=kind,
                readonly=name == "private",
                recursive_read_only=name == "private",
            )
            for name, kind in kinds.items()
        ]
        config = node.sandbox_config()
        config.linux.security_context.privileged = True
        linux = secured(privileged=True)
        _, container = await node.launch_with(config, "sleep", "1000", mounts=mounts, linux=linux)
        answer = await node.exec(container, "sh", "-c", "echo x >/private/x; echo x >/private/inner/x")
        assert answer.stderr.count(b"Read-only file system") == 2
        for name in kinds:
            syscalls.mount(b"none", bytes(tmp_path / name / "late"), b"tmpfs")
            (tmp_path / name / "late" / "made").touch()
        assert await sh(node, container, "ls /shared/late /slave/late /private/late") == (
            "/private/late:\n\n/shared/late:\nmade\n\n/slave/late:\nmade\n"
        )
        await sh(node, container, "busybox mount -t tmpfs none /shared/inner && echo x >/shared/inner/inside")
        assert (tmp_path / "shared/inner/inside").exists()
        await sh(node, container, "busybox mount -t tmpfs none /slave/inner && echo x >/slave/inner/inside")
        assert not (tmp_path / "slave/inner/inside").exists()
        await node.clean()
    finally:
        for name in ("shared", "slave", "private"):
            for target in (tmp_path / name / "inner", tmp_path / name / "late", tmp_path / name):
                while os.path.ismount(target):
                    syscalls.umount(bytes(target), syscalls.MNT_DETACH)


async def test_a_volume_can_have_other_owners(node: CriNode, handler: str, tmp_path: Path):
    """ID-mapped by the kubelet (uidMappings of a mount), in a pod without a user namespace."""
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("text")
    ids = [pb.IDMapping(host_id=700, container_id=0, length=10)]
    mount = pb.Mount(container_path="/v", host_path=str(tmp_path), uidMappings=ids, gidMappings=ids)
    _, container, _ = await node.launch("sleep", "1000", mounts=[mount])
    assert await sh(node, container, "busybox stat -c %u:%g /v/file") == "700:700\n"


async def test_a_containers_terminal(node: CriNode, handler: str):
    script = "while read line; do echo got $line; busybox stty size; done"
    _, container, config = await node.launch("sh", "-c", script, stdin=True, tty=True)
    asked = pb.AttachRequest(container_id=container, stdin=True, stdout=True, tty=True)
    stream = await open_stream((await node.runtime.Attach(asked)).url)
    await stream.send(b'\4{"Width":123,"Height":45}')
    await stream.send(b"\0hello\n")
    await stream.read_until(b"45 123")
    assert b"got hello" in stream.output[1]
    await node.runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=0))
    await stream.read_to_end()
    assert "got hello" in node.container_log(config)


async def test_created_and_never_started(node: CriNode, handler: str):
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    first = await node.create(sandbox, config, "sleep", "1000", name="first")
    await node.create(sandbox, config, "sleep", "1000", name="second", tty=True, stdin=True)
    await node.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=first))
    await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    assert crileaks.of_pods(node.picture()) == []


@pytest.mark.parametrize("user", ["nobody-of-that-name", "99999999999"])
async def test_a_user_that_the_image_does_not_know(node: CriNode, handler: str, user: str):
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)

    async def launch() -> None:
        container = await node.create(sandbox, config, "sleep", "9", linux=secured(run_as_username=user))
        await node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))

    code, words = await refused(launch())
    assert code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INVALID_ARGUMENT)
    assert user in words
    await node.clean()
    assert crileaks.of_pods(node.picture()) == []


async def test_kill_9_amid_a_start_leaves_nothing_behind(node: CriNode, handler: str):
    for delay in (0.005, 0.02, 0.05, 0.1):
        config = node.sandbox_config()
        sandbox = await node.run_pod(config)
        container = await node.create(sandbox, config, "sleep", "1000")
        call = asyncio.ensure_future(
            node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
        )
        await asyncio.sleep(delay)
        await node.restart()
        await asyncio.gather(call, return_exceptions=True)
        await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    assert crileaks.of_pods(node.picture()) == []


async def test_stop_amid_a_start(node: CriNode, handler: str):
    for delay in (0.0, 0.01, 0.03):
        config = node.sandbox_config()
        sandbox = await node.run_pod(config)
        container = await node.create(sandbox, config, "sleep", "1000")
        call = asyncio.ensure_future(
            node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
        )
        await asyncio.sleep(delay)
        await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
        await asyncio.gather(call, return_exceptions=True)
        assert (await node.status(container)).state == pb.CONTAINER_EXITED
        await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    assert crileaks.of_pods(node.picture()) == []


def test_a_handler_without_a_program_stops_the_start(tmp_path: Path):
    argv = [sys.executable, "-m", "cri.main", f"--listen=unix://{tmp_path}/s", f"--root={tmp_path}/root"]
    argv += [f"--state={tmp_path}/state", "--runtime-handler=none=/no/such/program"]
    done = subprocess.run(argv, capture_output=True, check=False, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "nodelet-cri: --runtime-handler none: /no/such/program is not a program: install it"
    )
