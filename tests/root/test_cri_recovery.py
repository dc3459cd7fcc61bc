"""The daemon dies at any moment; pods, exit codes, log lines and addresses stay."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import crileaks
import pytest
from crinode import CriNode

from cri.state.records import RECORD_VERSION, SANDBOX_KIND
from host import syscalls
from host.files import write_record
from proto.cri import runtime_pb2 as pb


async def pid_of(node: CriNode, container: str) -> int:
    """The container's first process, as this machine counts."""
    request = pb.ContainerStatusRequest(container_id=container, verbose=True)
    return json.loads((await node.runtime.ContainerStatus(request)).info["info"])["pid"]


async def gone(pid: int) -> None:
    """Wait until a process has ended and its parent knows."""
    async with asyncio.timeout(60):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)


async def test_containers_live_through_kill_9(node: CriNode, handler: str):
    script = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.01; done"
    sandbox, container, config = await node.launch("sh", "-c", script)
    before = await node.status(container)
    address = (
        await node.runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox))
    ).status.network
    pid = (await node.exec(container, "sh", "-c", "echo $PPID; readlink /proc/1/ns/pid")).stdout
    for _ in range(3):
        await node.restart()
    after = await node.status(container)
    assert after == before
    assert after.state == pb.CONTAINER_RUNNING
    status = (await node.runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox))).status
    assert (status.state, status.network) == (pb.SANDBOX_READY, address)
    assert (await node.exec(container, "sh", "-c", "echo $PPID; readlink /proc/1/ns/pid")).stdout == pid
    await node.runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=0))
    numbers = [int(line.split()[1]) for line in node.container_log(config)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 50


async def test_an_exit_in_the_gap_is_reported(node: CriNode, handler: str):
    _, container, config = await node.launch("sh", "-c", "echo begin; sleep 0.3; echo end; exit 42")
    pid = await pid_of(node, container)
    await node.disconnect()
    node.kill(signal.SIGKILL)
    await gone(pid)
    node.launch_daemon()
    await node.connect()
    status = await node.status(container)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 42, "Error")
    assert 0 < status.started_at < status.finished_at
    assert node.container_log(config) == ["begin", "end"]


async def test_a_created_container_can_be_started_after_a_restart(node: CriNode, handler: str):
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    container = await node.create(sandbox, config, "sh", "-c", "exit 6")
    await node.restart()
    await node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    assert (await node.wait_exit(container)).exit_code == 6


async def test_a_lost_supervisor_ends_the_pod_and_it_can_be_removed(node: CriNode, handler: str):
    sandbox, container, config = await node.launch("sleep", "1000")
    verbose = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True)
    info = (await node.runtime.PodSandboxStatus(verbose)).info["info"]
    os.kill(json.loads(info)["pid"], signal.SIGKILL)
    status = await node.wait_exit(container)
    assert status.reason in ("Unknown", "Error")
    assert status.exit_code in (137, 255)
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox)
    assert (await node.runtime.PodSandboxStatus(request)).status.state == pb.SANDBOX_NOTREADY
    again = node.sandbox_config()
    again.CopyFrom(config)
    again.metadata.attempt = 1
    second = await node.run_pod(again)
    assert second != sandbox
    await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))


async def test_a_supervisor_lost_while_the_daemon_was_away(node: CriNode, handler: str):
    sandbox, container, _ = await node.launch("sleep", "1000")
    verbose = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True)
    pid = json.loads((await node.runtime.PodSandboxStatus(verbose)).info["info"])["pid"]
    await node.disconnect()
    node.kill(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    await gone(pid)
    node.launch_daemon()
    await node.connect()
    status = await node.status(container)
    assert status.state == pb.CONTAINER_EXITED
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox)
    assert (await node.runtime.PodSandboxStatus(request)).status.state == pb.SANDBOX_NOTREADY


async def test_kill_9_amid_creation_leaves_nothing_behind(node: CriNode):
    """The daemon is killed at growing times after RunPodSandbox and CreateContainer were sent."""
    before = node.picture().without_descriptors()
    for delay in (0.001, 0.003, 0.006, 0.01, 0.015, 0.02, 0.03):
        config = node.sandbox_config()
        call = asyncio.ensure_future(node.launch_with(config, "sleep", "1000"))
        await asyncio.sleep(delay)
        node.kill(signal.SIGKILL)
        await asyncio.wait([call])
        call.exception()
        await node.disconnect()
        node.launch_daemon()
        await node.connect()
        for item in (await node.runtime.ListPodSandbox(pb.ListPodSandboxRequest())).items:
            await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=item.id))
    assert crileaks.difference(before, node.picture().without_descriptors()) == []


async def test_nothing_is_left_after_removal(node: CriNode):
    """Descriptors of the daemon included: the second pod needs no more than the first one did."""
    before = None
    for _ in range(3):
        sandbox, container, _ = await node.launch("sleep", "1000")
        await node.exec(container, "id")
        await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
        before = before or node.picture()
    async with asyncio.timeout(60):  # what is closed after the answer; a leak stays for ever
        while found := crileaks.difference(before, node.picture()):
            await asyncio.sleep(0.05)
    assert found == []
    assert not node.picture().state


async def supervisor_of(node: CriNode, sandbox: str) -> int:
    """Its process id."""
    verbose = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True)
    return json.loads((await node.runtime.PodSandboxStatus(verbose)).info["info"])["pid"]


async def test_a_stuck_supervisor_hurts_its_own_pod_only_and_is_named(node: CriNode):
    """Stopped while the daemon is away: the daemon serves all others, and removes even this one."""
    stuck, _, config = await node.launch("sleep", "1000")
    _, other, _ = await node.launch("sleep", "1000")
    pid = await supervisor_of(node, stuck)
    os.kill(pid, signal.SIGSTOP)
    await node.restart()
    assert (await node.exec(other, "echo", "hi")).stdout == b"hi\n"
    assert f"pod default/{config.metadata.name} is stuck: sandbox {stuck}" in node.log()
    await node.launch("sleep", "1000")
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=stuck), timeout=60)
    await gone(pid)
    assert (await node.status(other)).state == pb.CONTAINER_RUNNING


async def test_a_supervisor_that_was_stuck_for_a_while_is_found_again(node: CriNode):
    sandbox, container, _ = await node.launch("sleep", "1000")
    pid = await supervisor_of(node, sandbox)
    os.kill(pid, signal.SIGSTOP)
    await node.restart()
    os.kill(pid, signal.SIGCONT)
    assert (await node.exec(container, "echo", "back")).stdout == b"back\n"
    await node.runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=0))
    assert (await node.status(container)).exit_code == 137


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"kind":"nodelet-cri/sandbox","version":1}'], ids=["empty", "cut", "hollow"]
)
@pytest.mark.parametrize("kind", ["sandboxes", "containers"])
async def test_the_last_record_is_damaged_and_nothing_is_lost(node: CriNode, kind: str, damage: bytes):
    sandbox, container, _ = await node.launch("sleep", "1000")
    _, ended, _ = await node.launch("sh", "-c", "exit 7")
    await node.wait_exit(ended)
    pod, before = await sandbox_status(node, sandbox), await node.status(container)
    node.kill(signal.SIGKILL)
    for folder in (node.folder / "state" / kind).iterdir():
        max(folder.glob("*.record"), key=lambda path: int(path.stem)).write_bytes(damage)
    await node.revive()
    assert await sandbox_status(node, sandbox) == pod
    after = await node.status(container)
    assert (after.state, after.started_at, after.resources) == (
        before.state,
        before.started_at,
        before.resources,
    )
    assert (await node.status(ended)).exit_code == 7
    assert (await node.exec(container, "echo", "alive")).stdout == b"alive\n"


async def sandbox_status(node: CriNode, sandbox: str) -> pb.PodSandboxStatus:
    return (await node.runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox))).status


@pytest.mark.parametrize("kind", ["sandboxes", "containers"])
async def test_all_records_are_damaged_and_what_they_were_of_is_removed(node: CriNode, kind: str):
    """Nothing runs on without anybody knowing; the other pods stay."""
    before = node.picture().without_descriptors()
    sandbox, container, _ = await node.launch("sleep", "1000")
    _, other, _ = await node.launch("sleep", "1000")
    pid = await pid_of(node, container)
    node.kill(signal.SIGKILL)
    lost = node.folder / "state" / kind / (sandbox if kind == "sandboxes" else container)
    for path in lost.glob("*.record"):
        path.write_bytes(b"junk")
    await node.revive()
    await gone(pid)
    listed = (await node.runtime.ListContainers(pb.ListContainersRequest())).containers
    assert [item.id for item in listed] == [other]
    assert (await node.status(other)).state == pb.CONTAINER_RUNNING
    await node.clean()
    assert crileaks.difference(before, node.picture().without_descriptors()) == []


async def test_the_record_of_what_to_undo_is_damaged(node: CriNode):
    before = node.picture().without_descriptors()
    sandbox, container, _ = await node.launch("sleep", "1000")
    folder = node.folder / "state/runtime/sandboxes" / sandbox
    (folder / "sandbox").write_bytes(b"junk")
    (folder / "containers" / container / "container").write_bytes(b"")
    await node.restart()
    assert (await node.exec(container, "id")).exit_code == 0
    await node.clean()
    assert crileaks.difference(before, node.picture().without_descriptors()) == []


async def test_state_of_a_later_release_is_refused_and_untouched(node: CriNode):
    """One line, and the pods run on: the later release finds everything as it was."""
    sandbox, container, _ = await node.launch("sleep", "1000")
    pid = await pid_of(node, container)
    node.kill(signal.SIGKILL)
    newer = node.folder / "state/sandboxes" / sandbox / "99.record"
    write_record(newer, {}, kind=SANDBOX_KIND, version=RECORD_VERSION + 1)
    await node.revive(answers=False)
    node.wait_end()
    assert node.exit_status == 1
    last = node.log().splitlines()[-1]
    assert last.startswith(f"nodelet-cri: record {newer}: ")
    assert f"version {RECORD_VERSION + 1} is newer" in last
    assert Path(f"/proc/{pid}").exists()
    newer.unlink()
    await node.revive()
    assert (await node.status(container)).state == pb.CONTAINER_RUNNING


async def test_a_reboot_is_recognised(node: CriNode, tmp_path: Path):
    """Another boot id: pods are NotReady, containers have ended, no process that has an old id is touched,
    images are whole, addresses are free again."""
    sandbox, container, _ = await node.launch("sleep", "1000")
    images = (await node.images.ListImages(pb.ListImagesRequest())).images
    async with asyncio.timeout(20):  # one that is not on the disk yet would rightly be dropped
        while any('"boot":""' not in path.read_text() for path in node.folder.glob("root/images/images/*")):
            await asyncio.sleep(0.1)
    pid, supervisor = await pid_of(node, container), await supervisor_of(node, sandbox)
    node.kill(signal.SIGKILL)
    os.kill(supervisor, signal.SIGKILL)
    await gone(pid)
    (tmp_path / "boot_id").write_text("11111111-2222-3333-4444-555555555555\n")
    boot_id = "/proc/sys/kernel/random/boot_id"
    syscalls.mount(str(tmp_path / "boot_id"), boot_id, "", syscalls.MS_BIND)
    try:
        await node.revive()
        assert (await sandbox_status(node, sandbox)).state == pb.SANDBOX_NOTREADY
        status = await node.status(container)
        assert (status.state, status.exit_code != 0) == (pb.CONTAINER_EXITED, True)
        assert (await node.images.ListImages(pb.ListImagesRequest())).images == images
        _, fresh, _ = await node.launch("sleep", "1000")
        assert (await node.exec(fresh, "id")).exit_code == 0
        await node.clean()
        assert not node.picture().state
    finally:
        node.kill(signal.SIGKILL)
        syscalls.umount(boot_id, syscalls.MNT_DETACH)
        await node.revive()


async def test_twenty_pods_live_through_six_kills(node: CriNode):
    """The upstream shape: no container ends by it, and what ends meanwhile has its exit code."""
    script = "i=0; while test $i -lt {count}; do i=$((i+1)); echo $i; sleep 0.05; done; exit {code}"
    pods = [
        await node.launch("sh", "-c", script.format(count=30 if number % 2 else 10**6, code=number))
        for number in range(20)
    ]
    for _ in range(6):
        await node.restart()
    for number, (_, container, config) in enumerate(pods):
        if number % 2:
            assert (await node.wait_exit(container)).exit_code == number
        else:
            assert (await node.status(container)).state == pb.CONTAINER_RUNNING
        lines = [int(line) for line in node.container_log(config)]
        assert lines == list(range(1, len(lines) + 1))
