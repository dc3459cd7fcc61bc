"""`plan` for pods that shall run: each case is an observation and the actions that follow from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from podkit import make_pod

from agent.pods.actions import (
    Condemned,
    Failure,
    Hold,
    KillContainer,
    Observed,
    PrepareVolumes,
    PullImage,
    RemoveContainer,
    RemoveSandbox,
    RunSandbox,
    StartContainer,
    Volumes,
    Wait,
)
from agent.pods.facts import ContainerFact, PodFacts, SandboxFact, State
from agent.pods.plan import plan
from agent.pods.restart import Backoff
from agent.pods.spec import container_hash

BOX = SandboxFact(id="box", ips=("10.0.0.1",))
IMAGES = {"app": "sha256:1", "b": "sha256:1", "one": "sha256:1", "side": "sha256:1"}


def con(name: str = "app", state: State = State.RUNNING, **changes: Any) -> ContainerFact:
    given = {"id": f"{name}-0", "sandbox_id": "box", **changes}
    return ContainerFact(name=name, state=state, **given)


def seen(*containers: ContainerFact, boxes: tuple[SandboxFact, ...] = (BOX,), **changes: Any) -> Observed:
    facts = PodFacts(uid="u1", sandboxes=boxes, containers=containers)
    base = Observed(now=100.0, facts=facts, volumes=Volumes.READY, images=IMAGES)
    return replace(base, **{"started": frozenset(c.id for c in containers), **changes})


def containers(*names: str) -> dict[str, Any]:
    return {"containers": [{"name": name, "image": "busybox"} for name in names]}


ONE = {"initContainers": [{"name": "one", "image": "busybox"}]}
SIDE = {"initContainers": [{"name": "side", "image": "busybox", "restartPolicy": "Always"}]}
START = StartContainer("app", 0, "box", "sha256:1")


def test_at_first_volumes_sandbox_and_image_go_side_by_side() -> None:
    nothing = seen(boxes=(), volumes=Volumes.UNKNOWN, images={})
    assert plan(make_pod(), nothing) == [PrepareVolumes(), RunSandbox(0), PullImage("app", "busybox")]


def test_jobs_under_way_are_not_started_again() -> None:
    jobs = dict.fromkeys(("volumes", "sandbox", "pull:app:busybox"))
    assert plan(make_pod(), seen(boxes=(), volumes=Volumes.UNKNOWN, images={}, jobs=jobs)) == []


@pytest.mark.parametrize("missing", [{"boxes": ()}, {"volumes": Volumes.UNKNOWN}, {"images": {}}])
def test_nothing_starts_before_sandbox_volumes_and_image_are_there(missing: dict[str, Any]) -> None:
    assert START not in plan(make_pod(), seen(**missing))


def test_with_everything_there_the_container_starts() -> None:
    assert plan(make_pod(), seen()) == [START]


def test_a_running_pod_needs_nothing() -> None:
    assert plan(make_pod(), seen(con())) == []


def test_app_containers_start_in_order_and_images_come_ahead() -> None:
    pod = make_pod(spec=containers("app", "b"))
    assert plan(pod, seen(images={})) == [PullImage("app", "busybox"), PullImage("b", "busybox")]
    assert plan(pod, seen()) == [START]
    assert plan(pod, seen(con(), jobs={"start:app": None})) == []
    assert plan(pod, seen(con())) == [replace(START, container="b")]


def test_a_failing_container_does_not_hold_back_the_next() -> None:
    pod = make_pod(spec=containers("app", "b"))
    failure = Failure(reason="CreateContainerConfigError", message="no", failed=99.0, retry=101.0)
    actions = plan(pod, seen(failures={"start:app": failure}))
    assert actions == [
        Hold("app", "CreateContainerConfigError", "no", 101.0),
        replace(START, container="b"),
    ]


def test_init_containers_gate_the_app() -> None:
    pod = make_pod(spec=ONE)
    assert plan(pod, seen()) == [replace(START, container="one")]
    assert plan(pod, seen(con("one"))) == []
    assert plan(pod, seen(con("one", State.EXITED))) == [START]


def test_a_failed_init_container_is_repeated_after_its_back_off() -> None:
    pod = make_pod(spec=ONE)
    failed = con("one", State.EXITED, exit_code=1)
    again = plan(pod, seen(failed, exits={failed.id: 95.0}))
    assert again == [StartContainer("one", 1, "box", "sha256:1", 95.0)]
    held = plan(pod, seen(failed, exits={failed.id: 95.0}, backoffs={"one": Backoff(10.0, 90.0)}))
    assert [type(a) for a in held] == [Hold]
    assert held[0].until == 105.0  # type: ignore[union-attr]


def test_a_sidecar_lets_the_app_start_once_it_has_started() -> None:
    pod = make_pod(spec=SIDE)
    assert plan(pod, seen()) == [replace(START, container="side")]
    assert plan(pod, seen(con("side"), started=frozenset())) == []
    assert plan(pod, seen(con("side"))) == [START]


def test_a_dead_sidecar_restarts_beside_a_running_app() -> None:
    pod = make_pod(spec=SIDE)
    dead = con("side", State.EXITED, exit_code=1)
    actions = plan(pod, seen(dead, con(), exits={dead.id: 100.0}))
    assert actions == [StartContainer("side", 1, "box", "sha256:1", 100.0)]


def test_crash_back_off_is_held_with_kubelets_words() -> None:
    dead = con(state=State.EXITED, exit_code=1)
    actions = plan(make_pod(), seen(dead, exits={dead.id: 99.0}, backoffs={"app": Backoff(80.0, 90.0)}))
    text = "back-off 1m20s restarting failed container=app pod=web_default(u1)"
    assert actions == [Hold("app", "CrashLoopBackOff", text, 179.0)]


def test_a_pull_failure_becomes_a_back_off_after_a_moment() -> None:
    failure = Failure(
        reason="ErrImagePull", message="not found", failed=99.0, retry=109.0, later="ImagePullBackOff"
    )
    fresh = plan(make_pod(), seen(images={}, failures={"pull:app:busybox": failure}))
    assert fresh == [Hold("app", "ErrImagePull", "not found", 101.0)]
    later = plan(make_pod(), seen(images={}, now=102.0, failures={"pull:app:busybox": failure}))
    text = 'Back-off pulling image "busybox": ErrImagePull: not found'
    assert later == [Hold("app", "ImagePullBackOff", text, 109.0)]
    due = plan(make_pod(), seen(images={}, now=109.0, failures={"pull:app:busybox": failure}))
    assert due == [PullImage("app", "busybox")]


def test_volumes_and_sandbox_wait_for_their_next_try() -> None:
    failure = Failure(reason="x", message="x", failed=99.0, retry=103.0)
    failures = {"volumes": failure, "sandbox": failure}
    actions = plan(make_pod(), seen(boxes=(), volumes=Volumes.UNKNOWN, failures=failures, images={}))
    assert actions == [Wait(103.0), Wait(103.0), PullImage("app", "busybox")]


def test_a_condemned_container_is_killed_with_its_own_grace() -> None:
    condemned = {"app-0": Condemned("failed liveness probe", 5.0, again=True)}
    kill = KillContainer("app", "app-0", 105.0, "failed liveness probe", again=True)
    assert plan(make_pod(), seen(con(), condemned=condemned)) == [kill]
    never = make_pod(spec={"restartPolicy": "Never"})
    assert plan(never, seen(con(), condemned=condemned)) == [replace(kill, again=False)]


def test_what_was_killed_to_run_again_does_so_whatever_its_exit_code() -> None:
    pod = make_pod(spec={"restartPolicy": "OnFailure"})
    dead = con(state=State.EXITED, exit_code=0)
    assert StartContainer("app", 1, "box", "sha256:1", 100.0) not in plan(pod, seen(dead))
    assert plan(pod, seen(dead, again=frozenset({"app-0"}))) == [
        StartContainer("app", 1, "box", "sha256:1", 100.0)
    ]


def test_a_changed_image_restarts_the_container() -> None:
    pod = make_pod()
    same = con(hash=container_hash(pod.spec.containers[0]))
    assert plan(pod, seen(same)) == []
    text = "Container app definition changed, will be restarted"
    kill = KillContainer("app", "app-0", 130.0, text, again=True)
    assert plan(pod, seen(con(hash="other"))) == [kill]


def test_a_dead_sandbox_is_replaced_after_its_containers_are_dead() -> None:
    dead_box = replace(BOX, ready=False)
    alive = plan(make_pod(), seen(con(), boxes=(dead_box,)))
    assert [type(a) for a in alive] == [KillContainer]
    gone = plan(make_pod(), seen(con(state=State.EXITED, exit_code=137), boxes=(dead_box,), images={}))
    assert gone[0] == RunSandbox(1, stop=("box",))


def test_a_pod_that_never_restarts_does_not_get_a_new_sandbox() -> None:
    pod = make_pod(spec={"restartPolicy": "Never"})
    dead = con(state=State.EXITED, exit_code=137)
    actions = plan(pod, seen(dead, boxes=(replace(BOX, ready=False),)))
    assert not any(isinstance(a, RunSandbox) for a in actions)


def test_a_new_sandbox_runs_init_containers_again() -> None:
    pod = make_pod(spec=ONE)
    old = (con("one", State.EXITED), con(state=State.EXITED, exit_code=137))
    new = SandboxFact(id="box2", attempt=1, ips=("10.0.0.2",))
    actions = plan(pod, seen(*old, boxes=(new, replace(BOX, ready=False))))
    assert [a.container for a in actions if isinstance(a, StartContainer)] == ["one"]


def test_a_container_left_created_by_a_killed_agent_is_made_again_with_the_same_number() -> None:
    left = con(state=State.CREATED, restart_count=2)
    actions = plan(make_pod(), seen(left))
    assert actions[0] == RemoveContainer("app-0")
    assert not any(isinstance(a, StartContainer) for a in actions)


def test_only_the_newest_dead_container_is_kept() -> None:
    runs = [con(id=f"app-{n}", attempt=n, state=State.EXITED) for n in (2, 1, 0)]
    now = con(id="app-3", attempt=3)
    assert plan(make_pod(), seen(now, *runs)) == [RemoveContainer("app-1"), RemoveContainer("app-0")]


def test_an_old_sandbox_without_kept_containers_is_removed() -> None:
    new = SandboxFact(id="box2", attempt=1, ips=("10.0.0.2",))
    here = con(sandbox_id="box2")
    assert plan(make_pod(), seen(here, boxes=(new, replace(BOX, ready=False)))) == [RemoveSandbox("box")]


def test_ephemeral_containers_start_once() -> None:
    pod = make_pod(spec={"ephemeralContainers": [{"name": "b", "image": "busybox"}]})
    assert plan(pod, seen(con())) == [replace(START, container="b")]
    assert plan(pod, seen(con(), con("b", State.EXITED))) == []
