"""nodelet-cri under the load of a full node, with its processes killed again and again.

    pods that live through it    100 pods, six kills of the daemon, its spawner, some supervisors; churn
    pods that come and go        250 pods at once, up and down twice

Upstream's shape is test/e2e_node/restart_test.go: 100 pods, six SIGKILLs of the runtime, no container ends.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from crinode import CriNode
from test_cri_recovery import gone, pid_of, supervisor_of

from proto.cri import runtime_pb2 as pb

AT_ONCE = 8
KILLS = 6
CHURN = 5
COUNTER = "i=0; while true; do i=$((i+1)); echo $i; sleep 1; done"

pytestmark = pytest.mark.timeout(3600)


@dataclass
class Pod:
    """One of the pods, and what must stay as it is."""

    sandbox: str
    container: str
    config: pb.PodSandboxConfig
    pid: int
    supervisor: int


async def all_of(work: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Some at a time."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(call: Callable[[], Awaitable[object]]) -> None:
        async with room:
            await call()

    await asyncio.gather(*(one(call) for call in work))


class Soak:
    """The pods of one run, and its figures."""

    def __init__(self, node: CriNode, say: Callable[[str], None]) -> None:
        self.node, self.say = node, say
        self.pods: list[Pod] = []

    async def add(self) -> None:
        sandbox, container, config = await self.node.launch("sh", "-c", COUNTER)
        pid, supervisor = await pid_of(self.node, container), await supervisor_of(self.node, sandbox)
        self.pods.append(Pod(sandbox, container, config, pid, supervisor))

    async def grow(self, count: int) -> None:
        """Start further pods; tell how long it took."""
        before = time.monotonic()
        await all_of([self.add] * count)
        took = time.monotonic() - before
        self.say(f"{count} pods started in {took:.1f} s, {took / count * 1000:.0f} ms each")

    async def drop(self, pods: list[Pod]) -> None:
        """Remove some."""

        async def remove(pod: Pod) -> None:
            request = pb.RemovePodSandboxRequest(pod_sandbox_id=pod.sandbox)
            await self.node.runtime.RemovePodSandbox(request)

        await all_of([lambda pod=pod: remove(pod) for pod in pods])  # type: ignore[misc]
        self.pods = [pod for pod in self.pods if pod not in pods]

    async def check(self) -> None:
        """Every pod is there, with the processes it had from the beginning."""
        ready = pb.PodSandboxStateValue(state=pb.SANDBOX_READY)
        asked = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(state=ready))
        listed = {item.id for item in (await self.node.runtime.ListPodSandbox(asked)).items}
        assert listed == {pod.sandbox for pod in self.pods}
        running = pb.ContainerStateValue(state=pb.CONTAINER_RUNNING)
        wanted = pb.ListContainersRequest(filter=pb.ContainerFilter(state=running))
        found = {item.id for item in (await self.node.runtime.ListContainers(wanted)).containers}
        assert found == {pod.container for pod in self.pods}
        assert [pod for pod in self.pods if not Path(f"/proc/{pod.pid}").exists()] == []

    def figures(self, when: str) -> None:
        """Memory and descriptors of the daemon, memory of supervisors."""
        pss = [memory(pod.supervisor, "smaps_rollup", "Pss") for pod in self.pods]
        each = f", supervisors {sum(pss) / len(pss) / 1024:.2f} MiB PSS each" if pss else ""
        pid = self.node.pid
        self.say(
            f"{when}: daemon {memory(pid, 'smaps_rollup', 'Pss') / 1024:.0f} MiB PSS, "
            f"{len(os.listdir(f'/proc/{pid}/fd'))} descriptors{each}"
        )


def memory(pid: int, file: str, name: str) -> int:
    """In KiB."""
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def spawner_of(daemon: int) -> int:
    """The one child of the daemon that forks supervisors."""
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
    return next(int(pid) for pid in children if "spawner" in Path(f"/proc/{pid}/comm").read_text())


async def test_a_hundred_pods_live_through_six_kills(node: CriNode, say: Callable[[str], None]):
    """Those end whose supervisor is killed, and no other; each is replaced, like some that are removed."""
    chance = random.Random(100)
    before = node.picture().without_descriptors()
    soak = Soak(node, say)
    await soak.grow(100)
    soak.figures("100 pods")
    for number in range(KILLS):
        victims = chance.sample(soak.pods, 3) if number % 2 else []
        pids = [
            node.pid,
            *([spawner_of(node.pid)] if number % 3 == 0 else []),
            *(pod.supervisor for pod in victims),
        ]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        started = time.monotonic()
        await node.revive()
        away = time.monotonic() - started
        say(f"kill {number + 1}: {len(pids)} processes; answers again after {away:.2f} s")
        for pod in victims:
            await gone(pod.pid)
            status = await node.wait_exit(pod.container)
            assert status.reason in ("Unknown", "Error")
        await soak.drop(victims)
        await soak.check()
        await soak.drop(chance.sample(soak.pods, CHURN))
        await all_of([soak.add] * (CHURN + len(victims)))
        await soak.check()
    soak.figures("after six kills")
    for pod in soak.pods:
        lines = [int(line) for line in node.container_log(pod.config)]
        assert lines == list(range(1, len(lines) + 1)), "a line of the log is lost"
    started = time.monotonic()
    await soak.drop(list(soak.pods))
    say(f"100 pods removed in {time.monotonic() - started:.1f} s")
    assert await node.left_over(before) == []


async def test_250_pods_churned(node: CriNode, say: Callable[[str], None]):
    """Twice all up, all down: the daemon has no more descriptors than before, and nothing is left."""
    before, soak, figures = node.picture().without_descriptors(), Soak(node, say), []
    for _ in range(2):
        await soak.grow(250)
        await soak.check()
        soak.figures("250 pods")
        started = time.monotonic()
        await soak.drop(list(soak.pods))
        say(f"250 pods removed in {time.monotonic() - started:.1f} s")
        assert await node.left_over(before) == []
        soak.figures("none")
        figures.append(len(os.listdir(f"/proc/{node.pid}/fd")))
    assert figures[1] <= figures[0]
