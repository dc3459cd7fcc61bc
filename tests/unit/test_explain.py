"""`nodelet why` and `nodelet pods`: on a node of fakes, what is in a pod's way is named with its cause."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import msgspec
import pytest
from podkit import Node, Program, deleted, make_pod, running

from agent.api import errors
from agent.explain import command, render
from agent.explain.blockers import probe_words
from agent.explain.documents import SOCKET, Blocker, Known, Line, PodReport
from agent.explain.report import report, status_word
from agent.explain.service import ExplainService
from agent.explain.situation import Situation, take
from agent.explain.words import age, clock_time, duration
from agent.pods.runtime import ExecResult
from agent.pods.status_resize import PendingResize
from agent.pods.timeline import FIRST, LAST, PODS, Timelines
from agent.probes.manager import ProbeStory
from agent.probes.state import Kind, Outcome, State, Thresholds
from agent.volumes.base import VolumeError
from host.clocks import FakeClock
from host.errors import InputError

FAILS = ExecResult(exit_code=1, stdout=b"not yet", stderr=b"")
PROBE = {"exec": {"command": ["cat", "/ok"]}, "periodSeconds": 10}


def situation(node: Node) -> Situation:
    (worker,) = node.manager.workers()
    return take(worker, manager=node.manager, probes=node.probes, clock=node.clock)


def told(node: Node) -> tuple[str, list[str]]:
    """The status word, and each blocker as `what: cause`."""
    found = report(situation(node))
    return found.word, [f"{each.what}: {each.cause}" for each in found.blockers]


async def test_a_ready_pod_has_nothing_in_its_way_and_a_timeline(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.slow["pull"] = 2.0
        await node.put(make_pod(metadata={"creationTimestamp": "2023-11-14T22:13:19Z"}))
        assert told(node) == ("ContainerCreating", ["container app: getting image busybox"])
        await node.advance(3)
        found = report(situation(node))
        assert (found.word, found.ready, found.blockers) == ("Running", 1, ())
        assert [line.what for line in found.timeline] == [
            "created in the API",
            "volumes mounted",
            "sandbox made, network ready",
            "container app: image there, busybox",
            "container app: started",
        ]
        assert {line.what: line.seconds for line in found.timeline}[
            "container app: image there, busybox"
        ] == 2.0


async def test_how_far_a_pull_is_and_a_resize_that_is_not_granted(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.slow["pull"] = 60.0
        await node.put(make_pod())
        (worker,) = node.manager.workers()
        worker.memory.notes["app"] = 'pulling image "busybox": 2 of 5 layers, 12.3 of 45.6 MB'
        assert told(node)[1] == ['container app: pulling image "busybox": 2 of 5 layers, 12.3 of 45.6 MB']
        await node.advance(61)
        worker.memory.pending = PendingResize(
            reason="Infeasible", message="node has not enough memory", generation=2, since=50.0
        )
        (blocker,) = report(situation(node)).blockers
        assert (blocker.what, blocker.cause) == (
            "resize of the pod",
            "Infeasible: node has not enough memory",
        )
        assert blocker.since is not None and blocker.since > 10


async def test_volumes_that_fail(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.volumes.problem = VolumeError('MountVolume.SetUp failed for volume "v" : no such export')
        await node.put(make_pod())
        word, found = told(node)
        assert word == "ContainerCreating"
        assert found == ['mounting volumes: failed: MountVolume.SetUp failed for volume "v" : no such export']
        assert any(entry.trouble and entry.failure for entry in situation(node).entries)


async def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        container = {"name": "app", "image": "nope:1", "imagePullPolicy": "IfNotPresent"}
        await node.put(make_pod(spec={"containers": [container]}))
        await node.advance(3)
        word, (found,) = told(node)
        assert word == "ImagePullBackOff"
        assert found.startswith("container app: ImagePullBackOff: ")
        (blocker,) = report(situation(node)).blockers
        assert blocker.until is not None and 0 < blocker.until <= 10


async def test_a_crash_loop_says_how_it_ended_and_when_it_starts_again(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        await node.put(make_pod())
        for _ in range(2):
            newest = max(node.cri.containers(), key=lambda fact: fact.attempt)
            node.cri.exit(newest.id, 137, "OOMKilled")
            await node.settle()
        await node.advance(3)
        word, found = told(node)
        assert word == "CrashLoopBackOff"
        assert found == [
            "container app: CrashLoopBackOff: "
            "Container app was killed by SIGKILL (exit code 137), out of memory"
        ]
        (blocker,) = report(situation(node)).blockers
        assert (blocker.since, blocker.until) == (3.0, 7.0)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("startupProbe", "Startup probe failed 2 of 9 times: not yet"),
        ("readinessProbe", "Readiness probe failed 2 of 9 times: not yet"),
    ],
)
async def test_probes_that_fail(tmp_path: Path, kind: str, words: str) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.hooks["cat /ok"] = FAILS
        container = {"name": "app", "image": "busybox", kind: {**PROBE, "failureThreshold": 9}}
        await node.put(make_pod(spec={"containers": [container]}))
        await node.advance(11)
        assert told(node) == ("Running", [f"container app: {words}"])


def test_what_a_probe_says() -> None:
    def words(last: Outcome, run: int, text: str = "", *, measured: bool = True) -> str:
        state = State(kind=Kind.READINESS, ok=False, last=last, run=run)
        return probe_words(Kind.READINESS, ProbeStory(state, Thresholds(2, 3), text, measured))

    assert words(Outcome.UNKNOWN, 0, measured=False) == "Readiness probe has not been asked yet"
    assert words(Outcome.SUCCESS, 1) == "Readiness probe succeeded 1 of 2 times"
    assert words(Outcome.FAILURE, 4, "no") == "Readiness probe failed 4 times in a row: no"
    assert words(Outcome.FAILURE, 3) == "Readiness probe failed 3 times in a row"
    assert words(Outcome.SUCCESS, 1, "no runtime") == "Readiness probe could not be asked: no runtime"


async def test_a_probe_in_its_initial_delay(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        probe = {**PROBE, "initialDelaySeconds": 60}
        await node.put(
            make_pod(spec={"containers": [{"name": "app", "image": "busybox", "readinessProbe": probe}]})
        )
        assert told(node)[1] == ["container app: Readiness probe has not been asked yet"]


async def test_init_containers_hold_the_others_back(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.programs["first"] = Program()
        init = [{"name": name, "image": "busybox"} for name in ("first", "second")]
        await node.put(make_pod(spec={"initContainers": init}))
        assert told(node) == ("Init:0/2", ["init container first: it runs and has not ended"])


async def test_readiness_gates(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        await node.put(make_pod(spec={"readinessGates": [{"conditionType": "example.com/in-lb"}]}))
        assert told(node)[1] == ["readiness gate example.com/in-lb: nobody has set it"]


async def test_a_pod_that_does_not_end(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.programs["app"] = Program(on_term=None)
        pod = make_pod(spec={"terminationGracePeriodSeconds": 60})
        await node.put(pod)
        await node.put(deleted(pod, 60))
        await node.advance(10)
        word, found = told(node)
        assert word == "Terminating"
        assert found == [
            "container app still runs: it was told to stop and has not ended; it is killed in 50 s"
        ]


async def test_a_pod_that_was_refused(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        await node.put(make_pod(spec={"nodeSelector": {"disk": "ssd"}}))
        word, (found,) = told(node)
        assert word == "NodeAffinity"
        assert found.startswith("refused or ended by the node: NodeAffinity: Pod was rejected")


async def test_the_api_away_is_said_with_its_reason(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.api.refuse = errors.Unreachable("connection refused")
        await node.put(make_pod())
        assert "connection refused" in report(situation(node)).undelivered
        node.api.refuse = None
        await node.advance(20)
        assert report(situation(node)).undelivered == ""


async def test_after_a_restart_of_the_agent_the_facts_still_tell(tmp_path: Path) -> None:
    first = Node(tmp_path)
    async with running(first):
        await first.put(make_pod())
        first.cri.exit(first.cri.containers()[0].id, 3)
        await first.settle()
        reported = first.pod()
        await first.advance(5)
    second = Node(tmp_path, cri=first.cri, clock=first.clock)
    async with running(second, reported):
        await second.advance(5)
        whats = [line.what for line in report(situation(second)).timeline]
        assert "container app started" in whats
        assert "container app exited with code 3" in whats
        assert "container app started (run 2)" in whats


# --- the socket and the commands --------------------------------------------------------------------------


def door(node: Node, path: Path) -> ExplainService:
    def names(word: str) -> list[Known]:
        return [Known(kind="pod", ip="10.2.0.9", name=word)]

    return ExplainService(path=path, manager=node.manager, probes=node.probes, clock=node.clock, names=names)


async def test_the_socket_answers_only_its_owner_and_goes_with_the_agent(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        await node.put(make_pod())
        path = tmp_path / SOCKET
        path.touch()
        service = door(node, path)
        with pytest.raises(InputError, match="is not a socket"):
            await service.run()
        path.unlink()
        task = asyncio.create_task(service.run())
        while not path.exists():
            await asyncio.sleep(0.01)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for query, count in (("/pods", 1), ("/pods/web", 1), ("/pods/default/web", 1), ("/pods/other", 0)):
            found, _ = await asyncio.to_thread(command.ask, path, query)
            assert len(found) == count
        known = await asyncio.to_thread(command.fetch, path, "/names?word=shop%2Fweb")
        assert msgspec.json.decode(known, type=list[Known])[0].name == "shop/web"
        with pytest.raises(InputError, match="answers 404"):
            await asyncio.to_thread(command.ask, path, "/nothing")
        with pytest.raises(InputError, match="another program listens"):
            await door(node, path).run()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not path.exists()


def test_no_agent_is_said_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="start it with nodelet run, or set --root-dir"):
        command.main(["pods", "--root-dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("argv", "path"),
    [
        (["why", "web"], "/pods/web"),
        (["why", "web", "-n", "shop"], "/pods/shop/web"),
        (["why", "shop/web"], "/pods/shop/web"),
        (["why", "../x"], "/pods/../x"),
        (["pods"], "/pods"),
    ],
)
def test_what_is_asked(argv: list[str], path: str) -> None:
    assert command._path(command._parser().parse_args(argv)) == path


def test_why_in_full() -> None:
    pod = PodReport(
        namespace="default",
        name="web",
        uid="u",
        word="CrashLoopBackOff",
        ready=0,
        containers=1,
        restarts=2,
        ip="10.0.0.1",
        created=900.0,
        undelivered="connection refused",
        blockers=(Blocker(what="container app", cause="it exited\x1b with code 3", since=3.0, until=7.0),),
        timeline=(
            Line(at=900.0, what="created in the API"),
            Line(at=900.25, what="started", seconds=0.062),
            Line(at=901.0, what="Unhealthy", trouble=True, count=4),
        ),
    )
    assert render.why(pod, now=1000.0) == (
        "pod default/web: CrashLoopBackOff, 0 of 1 ready, 2 restarts, 10.0.0.1, 1 min 40 s old\n\n"
        "in its way:\n"
        "  container app: it exited  with code 3 (for 3.0 s, next try in 7.0 s)\n\n"
        "the API server has not taken its last status: connection refused\n\n"
        "timeline (UTC):\n"
        "  1970-01-01 00:15:00.000                  created in the API\n"
        "  1970-01-01 00:15:00.250         62 ms    started\n"
        "  1970-01-01 00:15:01.000                ! Unhealthy (4 times)"
    )
    table = render.pods([pod], now=1000.0).splitlines()
    assert table[0].split() == list(render.HEADER)
    assert table[1].split()[:7] == ["default", "web", "0/1", "CrashLoopBackOff", "2", "10.0.0.1", "1m"]


def test_a_pod_without_trouble_in_full() -> None:
    pod = PodReport(namespace="d", name="w", uid="u", word="Running", ready=1, containers=1, restarts=0)
    assert render.why(pod, now=0.0) == "pod d/w: Running, 1 of 1 ready\n\nnothing is in its way"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0354, "35 ms"),
        (4.21, "4.2 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (86400, "1 d"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_ages_and_times() -> None:
    assert [age(s) for s in (-1, 59, 60, 7200, 200_000)] == ["0s", "59s", "1m", "2h", "2d"]
    assert clock_time(0.9996) == "1970-01-01 00:00:00.999"


def test_timelines_are_bounded_and_keep_the_beginning() -> None:
    clock = FakeClock()
    lines = Timelines(clock)
    for number in range(FIRST + LAST + 50):
        lines.note("u", "event", f"n{number}")
    found = lines.entries("u")
    assert len(found) == FIRST + LAST
    assert (found[0].what, found[FIRST - 1].what, found[-1].what) == (
        "n0",
        f"n{FIRST - 1}",
        f"n{FIRST + LAST + 49}",
    )
    lines.note("u", "event", found[-1].what)
    assert lines.entries("u")[-1].count == 2
    for number in range(PODS):
        lines.note(f"other{number}", "event", "x")
    assert lines.entries("u") == ()


def test_status_words_of_ended_pods() -> None:
    def word(**status: object) -> str:
        pod = make_pod(status=status)
        from agent.pods.facts import PodFacts

        return status_word(Situation(pod=pod, status=pod.status, now=0, wall=0, facts=PodFacts(uid="u1")))

    ended = {"name": "app", "state": {"terminated": {"exitCode": 3, "reason": "Error"}}}
    assert word(phase="Succeeded") == "Completed"
    assert word(phase="Failed", containerStatuses=[ended]) == "Error"
    assert word(phase="Failed", reason="Evicted") == "Evicted"
    waiting = {"name": "app", "state": {"waiting": {"reason": "ContainerCreating"}}}
    assert word(phase="Pending", containerStatuses=[waiting]) == "ContainerCreating"
