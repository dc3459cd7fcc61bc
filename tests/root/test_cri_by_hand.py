"""Somebody takes parts of a pod away by hand: status tells the truth, stop and remove clean up the rest."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import crileaks
import pytest
from crinode import CriNode
from test_cri_recovery import gone, pid_of, supervisor_of

from host import helpers
from host.cgroups import Cgroups
from proto.cri import runtime_pb2 as pb


@pytest.fixture
async def tidy(node: CriNode) -> AsyncIterator[CriNode]:
    """Afterwards nothing is left, as after any pod."""
    before = node.picture().without_descriptors()
    yield node
    await node.clean()
    assert crileaks.difference(before, node.picture().without_descriptors()) == []


async def end_pod(node: CriNode, sandbox: str) -> None:
    await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))


@pytest.mark.parametrize("restart", [False, True], ids=["at-once", "after-a-restart"])
async def test_the_network_namespace_is_deleted(tidy: CriNode, restart: bool):
    """Its name is; the supervisor still holds the thing itself, so the pod runs on."""
    sandbox, container, _ = await tidy.launch("sleep", "1000")
    for path in (tidy.folder / "netns").iterdir():
        await in_daemon(tidy, "umount", "-l", str(path))
        path.unlink()
    if restart:
        await tidy.restart()
    assert (await tidy.exec(container, "ip", "link", "show", "eth0")).exit_code == 0
    await end_pod(tidy, sandbox)


@pytest.mark.parametrize("restart", [False, True], ids=["at-once", "after-a-restart"])
async def test_the_cgroups_are_deleted(tidy: CriNode, restart: bool):
    """With what was in them, as `systemctl stop` of a slice does."""
    sandbox, container, config = await tidy.launch("sleep", "1000")
    Cgroups().remove(config.linux.cgroup_parent)
    status = await tidy.wait_exit(container)
    assert status.exit_code == 137
    if restart:
        await tidy.restart()
    assert await tidy.status(container) == status
    stats = pb.ContainerStatsRequest(container_id=container)
    assert (await tidy.runtime.ContainerStats(stats)).stats.memory.usage_bytes.value == 0
    await end_pod(tidy, sandbox)


async def test_the_root_is_unmounted(tidy: CriNode):
    """In the container's own mount namespace, the only one it is mounted in."""
    sandbox, container, _ = await tidy.launch("sleep", "1000")
    pid = await pid_of(tidy, container)
    await helpers.run_async(["nsenter", f"--mount=/proc/{pid}/ns/mnt", "umount", "-l", "/"], check=False)
    assert (await tidy.status(container)).state == pb.CONTAINER_RUNNING
    await tidy.runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=0))
    assert (await tidy.status(container)).exit_code == 137
    await end_pod(tidy, sandbox)


@pytest.mark.parametrize("restart", [False, True], ids=["at-once", "after-a-restart"])
@pytest.mark.parametrize(
    "folder",
    ["root/containers/{container}", "state/runtime/sandboxes/{sandbox}/containers/{container}"],
    ids=["layer", "runtime-state"],
)
async def test_folders_of_a_container_are_deleted(tidy: CriNode, folder: str, restart: bool):
    sandbox, container, _ = await tidy.launch("sleep", "1000")
    pid = await pid_of(tidy, container)
    shutil.rmtree(tidy.folder / folder.format(sandbox=sandbox, container=container))
    if restart:
        await tidy.restart()
    assert (await tidy.status(container)).state == pb.CONTAINER_RUNNING
    await end_pod(tidy, sandbox)
    await gone(pid)


@pytest.mark.parametrize("restart", [False, True], ids=["at-once", "after-a-restart"])
async def test_shared_memory_is_unmounted(tidy: CriNode, restart: bool):
    sandbox, container, _ = await tidy.launch("sleep", "1000")
    shm = tidy.folder / "state/runtime/sandboxes" / sandbox / "shm"
    await in_daemon(tidy, "umount", "-l", str(shm))
    if restart:
        await tidy.restart()
    assert (await tidy.exec(container, "ls", "/dev/shm")).exit_code == 0
    await end_pod(tidy, sandbox)


async def in_daemon(node: CriNode, *argv: str) -> None:
    """A command in the daemon's mount namespace, as an administrator's shell would be in."""
    await helpers.run_async(["nsenter", f"--mount=/proc/{node.pid}/ns/mnt", *argv])


async def test_what_somebody_mounts_into_a_layer_is_named_and_not_deleted(tidy: CriNode, tmp_path: Path):
    """An administrator's bind mount below a container's folder: its files must not go with the layer."""
    sandbox, container, _ = await tidy.launch("sleep", "1000")
    (tmp_path / "precious").write_text("data")
    point = tidy.folder / "root/containers" / container / "mine"
    point.mkdir()
    await in_daemon(tidy, "mount", "--bind", str(tmp_path), str(point))
    await end_pod(tidy, sandbox)
    assert (tmp_path / "precious").read_text() == "data"
    assert f"{point} is a mount point" in tidy.log()
    await in_daemon(tidy, "umount", str(point))
    await tidy.restart()  # which deletes the layers that nobody has a record of


def orphans(count: int) -> str:
    """A shell line that leaves so many processes without their parent, which then end."""
    return f"i=0; while test $i -lt {count}; do i=$((i+1)); (sleep 0.2 &) ; done; echo made; sleep 1000"


@pytest.mark.parametrize("mode", ["POD", "NODE"])
async def test_orphans_are_reaped(tidy: CriNode, mode: str):
    """By the pod's reaper where its containers share their processes, by the supervisor on the node's."""
    config = tidy.sandbox_config()
    config.linux.security_context.namespace_options.pid = pb.NamespaceMode.Value(mode)
    sandbox, container = await tidy.launch_with(config, "sh", "-c", orphans(100))
    supervisor = await supervisor_of(tidy, sandbox)
    group = Cgroups().folders(f"{config.linux.cgroup_parent}/{container}")[0]
    async with asyncio.timeout(30):
        while "made" not in tidy.container_log(config):
            await asyncio.sleep(0.05)
        while len((group / "cgroup.procs").read_text().split()) > 2:
            await asyncio.sleep(0.05)
        while found := [pid for pid in descendants(supervisor) if state(pid) == "Z"]:
            await asyncio.sleep(0.05)
    assert found == []
    assert (await tidy.status(container)).state == pb.CONTAINER_RUNNING


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


async def test_set_aside_folders_do_not_pile_up(tidy: CriNode):
    """Those of the newest damages stay for a person to look at."""
    node = tidy
    damaged = node.folder / "state/damaged"
    for _ in range(2):
        node.kill(signal.SIGKILL)
        for number in range(12):
            folder = node.folder / "state/containers" / f"{number}-{os.urandom(4).hex()}"
            folder.mkdir()
            (folder / "1.record").write_bytes(b"junk")
        await node.revive()
    newest = max(damaged.iterdir(), key=lambda path: path.stat().st_ctime_ns)
    assert len(list(damaged.iterdir())) == 16
    assert (newest / "1.record.corrupt").read_bytes() == b"junk"
