"""`plan` for pods that have to go, and for those whose work is over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from podkit import make_pod

from agent.pods.actions import (
    Failure,
    Finished,
    KillContainer,
    Observed,
    RemoveCgroup,
    RemoveContainer,
    RemoveSandbox,
    Stop,
    StopSandbox,
    TeardownVolumes,
    Volumes,
    Wait,
)
from agent.pods.facts import ContainerFact, PodFacts, SandboxFact, State
from agent.pods.plan import plan

BOX = SandboxFact(id="box", ips=("10.0.0.1",))
STOPPED = replace(BOX, ready=False)
GO = Stop(began=100.0, grace=30.0, release=True)
SIDES = {
    "initContainers": [
        {"name": "s1", "image": "busybox", "restartPolicy": "Always"},
        {"name": "s2", "image": "busybox", "restartPolicy": "Always"},
    ]
}


def con(name: str = "app", state: State = State.RUNNING, **changes: Any) -> ContainerFact:
    return ContainerFact(name=name, state=state, **{"id": f"{name}-0", "sandbox_id": "box", **changes})


def seen(*containers: ContainerFact, boxes: tuple[SandboxFact, ...] = (BOX,), **changes: Any) -> Observed:
    facts = PodFacts(uid="u1", sandboxes=boxes, containers=containers)
    return replace(Observed(now=100.0, facts=facts, volumes=Volumes.READY, stop=GO), **changes)


def kill(name: str, deadline: float = 130.0) -> KillContainer:
    return KillContainer(name, f"{name}-0", deadline, f"Stopping container {name}")


def test_apps_together_then_sidecars_in_reverse() -> None:
    pod = make_pod(spec={**SIDES, "containers": [{"name": n, "image": "x"} for n in ("app", "b")]})
    everyone = (con("s1"), con("s2"), con("app"), con("b"))
    assert plan(pod, seen(*everyone)) == [kill("app"), kill("b")]
    dead = (con("app", State.EXITED), con("b", State.EXITED))
    assert plan(pod, seen(con("s1"), con("s2"), *dead, now=110.0)) == [kill("s2")]
    assert plan(pod, seen(con("s1"), con("s2", State.EXITED), *dead, now=120.0)) == [kill("s1")]


def test_a_sidecar_gets_a_little_time_even_when_the_grace_is_used_up() -> None:
    pod = make_pod(spec=SIDES)
    assert plan(pod, seen(con("s1"), con("app", State.EXITED), now=140.0)) == [kill("s1", 142.0)]


def test_a_kill_under_way_is_left_alone_unless_the_deadline_moved() -> None:
    assert plan(make_pod(), seen(con(), jobs={"kill:app-0": 130.0})) == []
    sooner = Stop(began=105.0, grace=1.0, release=True)
    again = plan(make_pod(), seen(con(), now=105.0, stop=sooner, jobs={"kill:app-0": 130.0}))
    assert again == [kill("app", 106.0)]


def test_a_kill_that_failed_is_tried_again_later() -> None:
    failure = Failure(reason="FailedKillPod", message="x", failed=100.0, retry=101.0)
    assert plan(make_pod(), seen(con(), failures={"kill:app-0": failure})) == [Wait(101.0)]


def test_never_started_containers_are_removed() -> None:
    assert plan(make_pod(), seen(con(state=State.CREATED))) == [RemoveContainer("app-0")]
    assert plan(make_pod(), seen(con(state=State.CREATED), jobs={"start:app": None})) == []


def test_what_is_being_made_is_waited_for() -> None:
    assert plan(make_pod(), seen(boxes=(), jobs={"sandbox": None})) == []
    assert plan(make_pod(), seen(jobs={"start:app": None})) == []


def test_then_sandbox_and_volumes_side_by_side() -> None:
    assert plan(make_pod(), seen(con(state=State.EXITED))) == [StopSandbox("box"), TeardownVolumes()]
    half = seen(con(state=State.EXITED), boxes=(STOPPED,), jobs={"teardown": None})
    assert plan(make_pod(), half) == []


def test_then_everything_is_removed_and_last_the_cgroup() -> None:
    freed = seen(con(state=State.EXITED), boxes=(STOPPED,), volumes=Volumes.GONE)
    assert plan(make_pod(), freed) == [RemoveSandbox("box")]
    assert plan(make_pod(), seen(boxes=(), volumes=Volumes.GONE)) == [RemoveCgroup()]
    assert plan(make_pod(), seen(boxes=(), volumes=Volumes.GONE, cgroup=False)) == [Finished()]


def test_volumes_that_hang_keep_the_pod_but_nothing_else() -> None:
    failure = Failure(reason="FailedUnMount", message="busy", failed=100.0, retry=105.0)
    busy = seen(con(state=State.EXITED), boxes=(STOPPED,), failures={"teardown": failure})
    assert plan(make_pod(), busy) == [Wait(105.0)]


def test_a_pod_that_ended_keeps_its_dead_containers() -> None:
    pod = make_pod(spec={"restartPolicy": "Never"})
    ended = seen(con(state=State.EXITED), stop=None)
    assert plan(pod, ended) == [StopSandbox("box"), TeardownVolumes()]
    freed = seen(con(state=State.EXITED), stop=None, boxes=(STOPPED,), volumes=Volumes.GONE, cgroup=False)
    assert plan(pod, freed) == []


def test_sidecars_stop_when_the_work_is_done() -> None:
    pod = make_pod(spec={"restartPolicy": "Never", **SIDES})
    assert plan(pod, seen(con("s1"), con(state=State.EXITED), stop=None)) == [kill("s1")]
