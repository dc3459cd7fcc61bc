"""What does not end when it is told to: a stopped supervisor, a frozen container, a thing that is held."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import crileaks
import pytest
from criclient import refused
from crinode import CriNode
from grpc import StatusCode
from test_cri_recovery import gone, pid_of, supervisor_of

from host.cgroups import Cgroups
from proto.cri import runtime_pb2 as pb

FREEZER = Path("/sys/fs/cgroup/freezer")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)


async def stop(node: CriNode, container: str, *, timeout: int = 0) -> None:
    request = pb.StopContainerRequest(container_id=container, timeout=timeout)
    await node.runtime.StopContainer(request, timeout=60)


async def remove(node: CriNode, container: str) -> None:
    request = pb.RemoveContainerRequest(container_id=container)
    await node.runtime.RemoveContainer(request, timeout=60)


async def test_containers_of_a_stopped_supervisor_are_stopped_without_it(node: CriNode):
    """Their neighbour in the pod lives on; the supervisor, once it goes on, changes nothing."""
    before = node.picture().without_descriptors()
    sandbox, first, config = await node.launch("sleep", "1000")
    containers = [first]
    for name in ("second", "neighbour"):
        containers.append(await node.create(sandbox, config, "sleep", "1000", name=name))
        await node.runtime.StartContainer(pb.StartContainerRequest(container_id=containers[-1]))
    _, second, neighbour = containers
    pids = [await pid_of(node, container) for container in containers]
    with stopped(await supervisor_of(node, sandbox)):
        await asyncio.gather(stop(node, first), stop(node, second, timeout=1))
        statuses = [await node.status(container) for container in (first, second)]
        for status in statuses:
            assert (status.state, status.exit_code) == (pb.CONTAINER_EXITED, 137)
            assert "supervisor does not answer" in status.message
            assert not Cgroups().pids(f"{config.linux.cgroup_parent}/{status.id}")
        await remove(node, second)
    await asyncio.gather(gone(pids[0]), gone(pids[1]))
    assert Path(f"/proc/{pids[2]}").exists()
    assert (await node.exec(neighbour, "echo", "alive")).stdout == b"alive\n"
    assert await node.status(first) == statuses[0]
    await node.clean()
    assert crileaks.difference(before, node.picture().without_descriptors()) == []


@pytest.mark.skipif(not FREEZER.is_dir(), reason="needs the freezer controller of cgroup v1")
class TestFrozen:
    async def test_a_frozen_container_is_stopped_and_removed(self, node: CriNode) -> None:
        _, container, config = await node.launch("sleep", "1000")
        freeze(f"{config.linux.cgroup_parent}/{container}")
        await stop(node, container)
        assert (await node.status(container)).exit_code == 137
        await remove(node, container)

    async def test_a_pod_with_a_frozen_container_is_removed(self, node: CriNode) -> None:
        before = node.picture().without_descriptors()
        sandbox, container, config = await node.launch("sleep", "1000")
        freeze(f"{config.linux.cgroup_parent}/{container}")
        await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox), timeout=60)
        assert crileaks.difference(before, node.picture().without_descriptors()) == []

    async def test_what_somebody_else_has_frozen_is_named(self, node: CriNode) -> None:
        """The pod's own cgroup is the kubelet's: it is not thawed, and the error says what to do."""
        sandbox, container, config = await node.launch("sleep", "1000")
        pid = await pid_of(node, container)
        freeze(config.linux.cgroup_parent)
        code, words = await refused(stop(node, container))
        assert code is StatusCode.DEADLINE_EXCEEDED
        assert f"{pid} (sleep)" in words
        assert f"frozen by {FREEZER}{config.linux.cgroup_parent}: write THAWED" in words
        assert (await node.status(container)).state == pb.CONTAINER_RUNNING
        os.kill(await supervisor_of(node, sandbox), signal.SIGKILL)
        asked = pb.StopPodSandboxRequest(pod_sandbox_id=sandbox)
        code, words = await refused(node.runtime.StopPodSandbox(asked))
        assert code is StatusCode.UNAVAILABLE
        assert f"{pid} (sleep)" in words
        (FREEZER / config.linux.cgroup_parent.strip("/") / "freezer.state").write_text("THAWED")
        await node.runtime.StopPodSandbox(asked)
        await gone(pid)


def freeze(cgroup: str) -> None:
    (FREEZER / cgroup.strip("/") / "freezer.state").write_text("FROZEN")
