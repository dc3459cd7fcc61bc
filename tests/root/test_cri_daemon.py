"""The daemon beside its calls: what it says of a broken network, and that it is alone on its files."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import grpc
import pytest
from criclient import refused
from crinode import CriNode
from test_cri_recovery import gone, pid_of, supervisor_of

from cri.runtime import record
from host import helpers, processes
from proto.cri import runtime_pb2 as pb


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


async def second_daemon(node: CriNode, *flags: str) -> processes.Completed:
    """How another daemon with the same arguments, and further ones, ends."""
    argv = [sys.executable, "-m", "cri.main", *node.arguments, *flags]
    return await helpers.run_async(argv, timeout=20, check=False)


OTHER_SOCKET = "--listen=unix://{folder}/other.sock"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "another program listens on {folder}/run/cri.sock"),
        ([OTHER_SOCKET], "another nodelet-cri uses {folder}/state"),
        ([OTHER_SOCKET, "--state={folder}/other"], "another nodelet-cri uses {folder}/root"),
    ],
    ids=["socket", "state", "root"],
)
async def test_a_second_daemon_on_the_same_files_is_refused(node: CriNode, flags: list[str], words: str):
    """In one line that says whom to stop; also when the first one was killed and started anew."""
    await node.restart(signal.SIGKILL)
    done = await second_daemon(node, *(flag.format(folder=node.folder) for flag in flags))
    assert done.returncode == 2
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith(f"nodelet-cri: {words.format(folder=node.folder)}, ")
    assert f"{node.pid} (" in last
    assert "Traceback" not in done.stderr.decode()
    assert (await node.runtime.Version(pb.VersionRequest())).runtime_name


async def test_of_four_daemons_started_at_once_one_serves(node: CriNode):
    """Over the socket and the locks that a killed one has left."""
    _, container, _ = await node.launch("sleep", "1000")
    node.kill(signal.SIGKILL)
    assert node.socket.is_socket()
    argv, null = [sys.executable, "-m", "cri.main", *node.arguments], asyncio.subprocess.DEVNULL
    rivals = [
        await asyncio.create_subprocess_exec(*argv, stdin=null, stderr=asyncio.subprocess.PIPE)
        for _ in range(4)
    ]
    ends = {asyncio.ensure_future(rival.communicate()): rival for rival in rivals}
    losers: set[asyncio.Future[tuple[bytes, bytes]]] = set()
    try:
        async with asyncio.timeout(60):
            while len(losers) < 3:
                done, _ = await asyncio.wait(ends.keys() - losers, return_when=asyncio.FIRST_COMPLETED)
                losers |= done
        for task in losers:
            assert ends[task].returncode == 2
            assert b"nodelet-cri: another " in task.result()[1]
        await node.disconnect()
        await node.connect()
        assert (await node.status(container)).state == pb.CONTAINER_RUNNING
    finally:
        for task, rival in ends.items():
            if rival.returncode is None:
                rival.terminate()
            await task
        await node.revive()


async def test_a_process_that_has_the_number_of_a_dead_one_is_let_alone(node: CriNode):
    """Numbers are used again: whoever has a supervisor's or a container's now is somebody else."""
    sandbox, container, _ = await node.launch("sleep", "1000")
    supervisor, pid = await supervisor_of(node, sandbox), await pid_of(node, container)
    node.kill(signal.SIGKILL)
    os.kill(supervisor, signal.SIGKILL)
    await gone(pid)
    stranger = await asyncio.create_subprocess_exec("sleep", "1000")
    try:
        folder = node.folder / "state/runtime/sandboxes" / sandbox
        for where, name in ((folder, "supervisor"), (folder / "containers" / container, "started")):
            facts = record.read(str(where), name)
            record.write(str(where), name, {**facts, "pid": stranger.pid})
        await node.revive()
        assert (await node.status(container)).state == pb.CONTAINER_EXITED
        await node.clean()
        assert not node.picture().state
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stranger.wait(), 0.2)
    finally:
        stranger.kill()
        await stranger.wait()
