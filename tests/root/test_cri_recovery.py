"""The daemon dies at any moment; pods, exit codes, log lines and addresses stay."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

from crinode import CriNode

from proto.cri import runtime_pb2 as pb


async def pid_of(node: CriNode, container: str) -> int:
    """The container's first process, as this machine counts."""
    request = pb.ContainerStatusRequest(container_id=container, verbose=True)
    return json.loads((await node.runtime.ContainerStatus(request)).info["info"])["pid"]


async def gone(pid: int) -> None:
    """Wait until a process has ended and its parent knows."""
    async with asyncio.timeout(10):
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
    assert leftovers(node) == []


def leftovers(node: CriNode) -> list[str]:
    """Whatever is still there of pods after all have been removed."""
    folders = ["state/sandboxes", "state/containers", "state/runtime/sandboxes", "root/containers", "netns"]
    found = [str(path) for name in folders for path in (node.folder / name).glob("*")]
    found += [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{node.folder}/" in line
    ]
    found += [name for name in os.listdir("/sys/class/net") if name.startswith("veth")]
    memory = Path("/sys/fs/cgroup/memory" + node.cgroup_parent)
    found += [str(path) for pod in memory.glob("pod*") for path in pod.iterdir() if path.is_dir()]
    return found


async def test_nothing_is_left_after_removal(node: CriNode, handler: str):
    sandbox, _, _ = await node.launch("sleep", "1000")
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    assert leftovers(node) == []
