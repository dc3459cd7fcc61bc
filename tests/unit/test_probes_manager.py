"""The probe manager under virtual time: when probes run, what they gate, what they report."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from agent.api.structs import Container, ExecAction, ObjectMeta, Pod, Probe
from agent.probes.manager import Kind, ProbeFailure, ProbeManager, ProbeResult
from host.clocks import FakeClock, settle


class Node:
    """A manager whose exec probes answer from a script and note when they ran."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.results: list[ProbeResult] = []
        self.failures: list[ProbeFailure] = []
        self.ran: list[tuple[float, str]] = []
        self.codes: dict[str, int | Exception] = {}
        self.manager = ProbeManager(
            clock=self.clock,
            exec_sync=self.exec_sync,
            on_result=self.results.append,
            on_failure=self.failures.append,
            random=lambda: 0.5,
        )

    async def exec_sync(self, container_id: str, argv: Sequence[str], timeout: float) -> tuple[int, bytes]:
        self.ran.append((self.clock.monotonic(), argv[0]))
        code = self.codes.get(argv[0], 0)
        if isinstance(code, Exception):
            raise code
        return code, b"because"

    def add(self, container: Container, **kwargs: object) -> None:
        pod = Pod(metadata=ObjectMeta(name="p", namespace="default", uid="u1"))
        arguments = {"container_id": "c1", "pod_ip": "10.0.0.1", "started_at": self.clock.now(), **kwargs}
        self.manager.add(pod, container, **arguments)

    def times(self, probe: str) -> list[float]:
        return [at for at, name in self.ran if name == probe]


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    made = Node()
    task = asyncio.create_task(made.manager.run())
    await settle()
    yield made
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def probe(name: str, **kwargs: int) -> Probe:
    return Probe(exec=ExecAction(command=(name,)), **kwargs)


async def test_first_run_after_the_initial_delay_then_every_period(node: Node) -> None:
    node.add(Container(name="c", liveness_probe=probe("live", initial_delay_seconds=5, period_seconds=5)))
    await node.clock.advance(16)
    assert node.times("live") == [5, 10, 15]


async def test_the_initial_delay_counts_from_the_containers_start(node: Node) -> None:
    container = Container(name="c", liveness_probe=probe("live", initial_delay_seconds=5))
    node.add(container, started_at=node.clock.now() - 3)
    await node.clock.advance(2)
    assert node.times("live") == [2]


async def test_liveness_kills_after_three_failures_and_stops_probing(node: Node) -> None:
    node.codes["live"] = 1
    node.add(Container(name="c", liveness_probe=probe("live", period_seconds=1)))
    await node.clock.advance(1)
    assert node.manager.alive("c1")
    await node.clock.advance(30)
    assert not node.manager.alive("c1")
    assert node.times("live") == [0, 1, 2]
    assert node.results == [
        ProbeResult("u1", "c", "c1", Kind.LIVENESS, False, "Liveness probe failed: because")
    ]
    assert [failure.message for failure in node.failures] == ["Liveness probe failed: because"] * 3
    assert {failure.reason for failure in node.failures} == {"Unhealthy"}


async def test_startup_gates_the_others_and_releases_them_at_once(node: Node) -> None:
    node.codes["start"] = 1
    node.add(
        Container(
            name="c",
            startup_probe=probe("start", period_seconds=10, failure_threshold=30),
            readiness_probe=probe("ready", period_seconds=10),
            liveness_probe=probe("live", period_seconds=10),
        )
    )
    await node.clock.advance(25)
    assert not node.manager.started("c1")
    assert node.times("ready") == node.times("live") == []
    node.codes["start"] = 0
    await node.clock.advance(6)
    assert node.times("start") == [0, 10, 20, 30]
    assert node.times("ready") == node.times("live") == [30]
    assert node.manager.started("c1") and node.manager.ready("c1")
    await node.clock.advance(30)
    assert node.times("start") == [0, 10, 20, 30]


async def test_a_startup_probe_that_runs_out_kills(node: Node) -> None:
    node.codes["start"] = 1
    node.add(Container(name="c", startup_probe=probe("start", period_seconds=1, failure_threshold=2)))
    await node.clock.advance(10)
    assert not node.manager.alive("c1")
    assert node.times("start") == [0, 1]


async def test_readiness_follows_its_probe_both_ways(node: Node) -> None:
    node.add(Container(name="c", readiness_probe=probe("ready", period_seconds=1, failure_threshold=2)))
    assert not node.manager.ready("c1")
    await node.clock.advance(0)
    assert node.manager.ready("c1")
    node.codes["ready"] = 1
    await node.clock.advance(2)
    assert not node.manager.ready("c1")
    node.codes["ready"] = 0
    await node.clock.advance(1)
    assert [result.ok for result in node.results] == [True, False, True]


async def test_without_probes_a_container_is_started_ready_and_alive(node: Node) -> None:
    node.add(Container(name="c"))
    assert node.manager.started("c1") and node.manager.ready("c1") and node.manager.alive("c1")
    assert not node.manager.ready("other")


async def test_after_an_agent_restart_ready_stays_and_first_runs_are_spread(node: Node) -> None:
    node.codes["ready"] = 1
    container = Container(name="c", readiness_probe=probe("ready", period_seconds=10))
    node.add(container, known={Kind.READINESS: True}, started_at=node.clock.now() - 100)
    assert node.manager.ready("c1")
    await node.clock.advance(24)
    assert node.times("ready") == [5, 15]
    assert node.manager.ready("c1")
    await node.clock.advance(2)
    assert not node.manager.ready("c1")


async def test_a_known_startup_success_is_not_probed_again(node: Node) -> None:
    container = Container(name="c", startup_probe=probe("start"), readiness_probe=probe("ready"))
    node.add(container, known={Kind.STARTUP: True})
    assert node.manager.started("c1")
    await node.clock.advance(20)
    assert node.times("start") == []
    assert node.times("ready") == [5, 15]


async def test_a_runtime_error_decides_nothing(node: Node) -> None:
    node.codes["live"] = RuntimeError("runtime is down")
    node.add(Container(name="c", liveness_probe=probe("live", period_seconds=1, failure_threshold=1)))
    await node.clock.advance(3)
    assert node.manager.alive("c1")
    assert node.results == []
    assert node.failures[0].message == "Liveness probe errored and resulted in unknown state: runtime is down"


async def test_a_command_out_of_time_is_a_failure(node: Node) -> None:
    node.codes["live"] = TimeoutError()
    node.add(Container(name="c", liveness_probe=probe("live", failure_threshold=1)))
    await node.clock.advance(0)
    assert not node.manager.alive("c1")
    assert "timed out after 1s" in node.results[0].message


async def test_terminating_stops_liveness_but_not_readiness(node: Node) -> None:
    node.add(
        Container(
            name="c",
            liveness_probe=probe("live", period_seconds=1),
            readiness_probe=probe("ready", period_seconds=1),
        )
    )
    await node.clock.advance(1)
    node.manager.terminating("u1")
    await node.clock.advance(2)
    assert node.times("live") == [0, 1]
    assert node.times("ready") == [0, 1, 2, 3]


async def test_remove_forgets(node: Node) -> None:
    node.add(Container(name="c", liveness_probe=probe("live", period_seconds=1)))
    await node.clock.advance(1)
    node.manager.remove_pod("u1")
    node.manager.remove("c1")
    await node.clock.advance(5)
    assert node.times("live") == [0, 1]
    assert node.manager.states("c1") == {}


async def test_adding_twice_probes_once(node: Node) -> None:
    container = Container(name="c", liveness_probe=probe("live"))
    node.add(container)
    node.add(container)
    await node.clock.advance(0)
    assert node.times("live") == [0]
    assert node.manager.states("c1") == {Kind.LIVENESS: True}


async def test_a_container_that_never_started_before_the_restart_is_still_killed(node: Node) -> None:
    node.codes["start"] = 1
    container = Container(name="c", startup_probe=probe("start", period_seconds=1, failure_threshold=2))
    node.add(container, known={Kind.STARTUP: False})
    assert node.manager.alive("c1")
    await node.clock.advance(5)
    assert not node.manager.alive("c1")
    assert [result.ok for result in node.results] == [False]
