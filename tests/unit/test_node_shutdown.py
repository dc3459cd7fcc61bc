"""Graceful node shutdown: the order of stages, and a whole one over a fake logind and fake pods."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from podkit import Node, Program, make_pod, running

from agent.api.structs import Pod
from agent.node.shutdown import MESSAGE, ShutdownManager, Stage, plan, stages
from host.errors import NotFound

BY_PRIORITY = (Stage(0, 60), Stage(1000, 120), Stage(100000, 10))


def named(name: str, priority: int | None = None, **spec: Any) -> Pod:
    return make_pod(metadata={"name": name, "uid": name}, spec={"priority": priority, **spec})


def test_the_time_of_critical_pods_is_part_of_the_whole() -> None:
    assert stages(all_pods=30.0, critical=10.0) == (Stage(0, 20), Stage(2_000_000_000, 10))
    assert stages(all_pods=0.0, critical=0.0) == ()
    assert stages(all_pods=0.0, critical=0.0, by_priority=BY_PRIORITY[::-1]) == BY_PRIORITY


@pytest.mark.parametrize(
    ("priority", "stage"),
    [(None, 0), (-5, 0), (0, 0), (999, 0), (1000, 1), (1001, 1), (100000, 2), (2_000_000_000, 2)],
)
def test_a_priority_belongs_to_the_stage_at_or_below_it(priority: int | None, stage: int) -> None:
    assert plan(BY_PRIORITY, [named("p", priority)]) == [(BY_PRIORITY[stage], [named("p", priority)])]


class FakeLogind:
    """Announces what the test says; a lock is a pipe's end, so that its release can be seen."""

    def __init__(self, *, delay: float = 30.0, after_reload: float = 30.0) -> None:
        self.delay, self.after_reload = delay, after_reload
        self.reloads = 0
        self.locks: list[int] = []
        self.waiting: list[bool] = []
        self.lost = False
        self._read, self._write = os.pipe()

    def announce(self, begins: bool) -> None:
        self.waiting.append(begins)
        os.write(self._write, b".")

    def held(self) -> bool:
        """Whether the last lock is still open at its holder."""
        os.set_blocking(self.locks[-1], False)
        try:
            return os.read(self.locks[-1], 1) != b""
        except BlockingIOError:
            return True

    def close(self) -> None:
        pass

    def fileno(self) -> int:
        return self._read

    def longest_delay(self) -> float:
        return self.delay

    def inhibit(self, *, who: str, why: str) -> int:
        mine, theirs = os.pipe()
        self.locks.append(mine)
        return theirs

    def reload(self) -> None:
        self.reloads += 1
        self.delay = self.after_reload

    def shutdowns(self) -> list[bool]:
        if self.lost:
            self.lost = False
            raise NotFound(2, "listen to logind", "gone")
        if self.waiting:
            os.read(self._read, len(self.waiting))
        found, self.waiting = self.waiting, []
        return found

    def dispose(self) -> None:
        for fd in (self._read, self._write, *self.locks):
            os.close(fd)


class Machine:
    def __init__(self, node: Node, logind: FakeLogind, *given: Stage, path: Path) -> None:
        self.node, self.logind = node, logind
        self.said: list[str] = []
        self.states: list[bool] = []
        self.connected = 0
        self.manager = ShutdownManager(
            given,
            connect=self._connect,
            pods=node.manager.ending,
            clock=node.clock,
            say=lambda reason, text: self.said.append(f"{reason}: {text}"),
            on_change=lambda: self.states.append(self.manager.shutting_down),
            override=path / "logind.conf.d/99.conf",
        )

    def _connect(self) -> FakeLogind:
        self.connected += 1
        return self.logind

    async def settle(self) -> None:
        """Let threads and the event loop's readers come to their ends."""
        for _ in range(20):
            await asyncio.sleep(0.001)
        await self.node.settle()


@asynccontextmanager
async def at_work(machine: Machine, *pods: Pod) -> AsyncIterator[None]:
    async with running(machine.node, *pods):
        task = asyncio.create_task(machine.manager.run())
        while not machine.logind.locks and not task.done():
            await asyncio.sleep(0.001)
            await machine.node.clock.advance(0.1)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            machine.logind.dispose()


async def test_a_shutdown_stops_pods_by_priority_and_then_lets_go(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.cri.programs["app"] = Program(on_term=None)
    machine = Machine(node, FakeLogind(), Stage(0, 20), Stage(2_000_000_000, 10), path=tmp_path)
    low = named("low", terminationGracePeriodSeconds=5)
    slow = named("slow", terminationGracePeriodSeconds=600)
    high = named("high", 2_000_000_000, terminationGracePeriodSeconds=600)
    async with at_work(machine, low, slow, high):
        assert machine.logind.held()
        machine.logind.announce(True)
        await machine.settle()
        assert machine.said == ["NodeShutdown: Shutdown manager detected shutdown event"]
        assert machine.states == [True]
        await node.advance(6.0)
        status = node.pod("low").status
        assert (status.phase, status.reason, status.message) == ("Failed", "Terminated", MESSAGE)
        assert "DisruptionTarget" in [c.type for c in status.conditions]
        assert [node.pod(name).status.phase for name in ("slow", "high")] == ["Running", "Running"]
        await node.advance(15.0)
        assert [node.pod(name).status.reason for name in ("slow", "high")] == ["Terminated", ""]
        assert machine.logind.held()
        await node.advance(11.0)
        await machine.settle()
        assert node.pod("high").status.reason == "Terminated"
        assert not machine.logind.held()
        assert {patch["phase"] for patch in node.api.patches[-3:]} == {"Failed"}


async def test_a_shutdown_that_is_called_off_is_held_up_the_next_time(tmp_path: Path) -> None:
    node = Node(tmp_path)
    machine = Machine(node, FakeLogind(), Stage(0, 20), path=tmp_path)
    async with at_work(machine):
        machine.logind.announce(True)
        await machine.settle()
        assert not machine.logind.held()
        machine.logind.announce(False)
        await machine.settle()
        assert (machine.states, machine.logind.held()) == ([True, False], True)


@pytest.mark.parametrize("willing", [20.0, 10.0])
async def test_logind_is_made_to_wait_long_enough(
    tmp_path: Path, willing: float, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(tmp_path)
    logind = FakeLogind(delay=5.0, after_reload=willing)
    machine = Machine(node, logind, Stage(0, 20), path=tmp_path)
    async with at_work(machine):
        assert logind.reloads == 1
        assert "InhibitDelayMaxSec=20\n" in (tmp_path / "logind.conf.d/99.conf").read_text()
        assert ("set InhibitDelayMaxSec" in caplog.text) == (willing < 20)


async def test_a_connection_that_is_lost_is_made_again(tmp_path: Path) -> None:
    node = Node(tmp_path)
    machine = Machine(node, FakeLogind(), Stage(0, 20), path=tmp_path)
    async with at_work(machine):
        machine.logind.lost = True
        machine.logind.announce(True)
        await machine.settle()
        await node.advance(2.0)
        await machine.settle()
        assert (machine.connected, machine.states) == (2, [True])


async def test_without_logind_nothing_is_held_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = Node(tmp_path)
    machine = Machine(node, FakeLogind(), Stage(0, 20), path=tmp_path)

    def refuse() -> FakeLogind:
        raise NotFound(2, "connect to logind", "no bus")

    machine.manager._connect = refuse
    async with running(node):
        task = asyncio.create_task(machine.manager.run())
        await machine.settle()
        await node.advance(60.0)
        assert not task.done()
        assert caplog.text.count("shutdowns of the machine are not held up") == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    machine.logind.dispose()
