"""Pod status from facts, as tables: phase, conditions, container states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from podkit import make_pod

from agent.api.structs import Condition, ContainerState, ContainerStateRunning, ContainerStatus, PodStatus
from agent.pods.facts import ContainerFact, PodFacts, SandboxFact, State
from agent.pods.status import StatusInput, Verdict, pod_status
from agent.pods.status_containers import ContainerView
from agent.pods.status_patch import status_patch

BOX = SandboxFact(id="box", ips=("10.0.0.1",))
ONE = {"name": "one", "image": "busybox"}
SIDE = {"name": "side", "image": "busybox", "restartPolicy": "Always"}
WAIT = {"app": ("CrashLoopBackOff", "back-off")}


def con(name: str = "app", state: State = State.RUNNING, code: int = 0, **changes: Any) -> ContainerFact:
    times = {"created_at": 10.0, "started_at": 11.0, "finished_at": 12.0 if state is State.EXITED else 0.0}
    given = {"id": f"{name}-0", "sandbox_id": "box", "image": "busybox", "image_ref": "busybox@sha256:1"}
    return ContainerFact(name=name, state=state, exit_code=code, **{**times, **given, **changes})


def status(pod: Any, *containers: ContainerFact, **changes: Any) -> PodStatus:
    ids = frozenset(c.id for c in containers)
    holds = changes.pop("holds", {})
    view = ContainerView(
        started=changes.pop("started", ids),
        ready=changes.pop("ready", ids),
        holds=holds,
        stopping=changes.pop("stopping", False),
    )
    boxes = changes.pop("boxes", (BOX,))
    facts = PodFacts(uid="u1", sandboxes=boxes, containers=containers)
    base = StatusInput(now=100.0, facts=facts, previous=pod.status, containers=view, host_ips=("192.0.2.1",))
    return pod_status(pod, replace(base, **changes))


def pod_of(policy: str = "Always", *inits: dict[str, Any], apps: tuple[str, ...] = ("app",)) -> Any:
    containers = [{"name": name, "image": "busybox"} for name in apps]
    return make_pod(spec={"restartPolicy": policy, "initContainers": list(inits), "containers": containers})


EXITED, RUNNING, CREATED, UNKNOWN = State.EXITED, State.RUNNING, State.CREATED, State.UNKNOWN
FAILED_RUN, GOOD_RUN = con(state=EXITED, code=1), con(state=EXITED)
FULL = Verdict(reason="OutOfcpu", message="full")
PHASES: list[tuple[str, Any, tuple[ContainerFact, ...], dict[str, Any], str]] = [
    ("nothing yet", pod_of(), (), {}, "Pending"),
    ("running", pod_of(), (con(),), {}, "Running"),
    ("created only", pod_of(), (con(state=CREATED),), {}, "Pending"),
    ("one of two", pod_of(apps=("app", "b")), (con(),), {}, "Pending"),
    ("one of two ended", pod_of(apps=("app", "b")), (con(), con("b", EXITED)), {}, "Running"),
    ("crashed, comes back", pod_of(), (FAILED_RUN,), {}, "Running"),
    ("crash loop", pod_of(), (FAILED_RUN,), {"holds": WAIT}, "Running"),
    ("done under Always", pod_of(), (GOOD_RUN,), {}, "Running"),
    ("done under OnFailure", pod_of("OnFailure"), (GOOD_RUN,), {}, "Succeeded"),
    ("failed under OnFailure", pod_of("OnFailure"), (FAILED_RUN,), {}, "Running"),
    ("done under Never", pod_of("Never"), (GOOD_RUN,), {}, "Succeeded"),
    ("failed under Never", pod_of("Never"), (FAILED_RUN,), {}, "Failed"),
    ("mixed under Never", pod_of("Never", apps=("app", "b")), (GOOD_RUN, con("b", EXITED, 2)), {}, "Failed"),
    ("lost under Never", pod_of("Never"), (con(state=UNKNOWN),), {"over": True, "stopping": True}, "Failed"),
    ("init running", pod_of("Always", ONE), (con("one"),), {}, "Pending"),
    ("init done", pod_of("Always", ONE), (con("one", EXITED),), {}, "Pending"),
    ("init failed", pod_of("Always", ONE), (con("one", EXITED, 1),), {}, "Pending"),
    ("init failed for good", pod_of("Never", ONE), (con("one", EXITED, 1),), {}, "Failed"),
    ("after init", pod_of("Always", ONE), (con("one", EXITED), con()), {}, "Running"),
    ("sidecar starting", pod_of("Always", SIDE), (con("side"),), {"started": frozenset()}, "Pending"),
    ("sidecar and app", pod_of("Always", SIDE), (con("side"), con()), {}, "Running"),
    ("sidecar outlives app", pod_of("Never", SIDE), (con("side"), GOOD_RUN), {}, "Running"),
    ("sidecar ended too", pod_of("Never", SIDE), (con("side", EXITED, 143), GOOD_RUN), {}, "Succeeded"),
    ("sidecar restarts", pod_of("Always", SIDE), (con("side", EXITED, 1), con()), {}, "Running"),
    ("deleted, all dead", pod_of(), (GOOD_RUN,), {"over": True, "stopping": True}, "Succeeded"),
    ("deleted, crashed", pod_of(), (FAILED_RUN,), {"over": True, "stopping": True}, "Failed"),
    ("deleted before it started", pod_of(), (), {"over": True, "stopping": True}, "Failed"),
    ("deleted, still alive", pod_of(), (con(),), {"stopping": True}, "Running"),
    ("rejected", pod_of(), (), {"verdict": FULL, "over": True}, "Failed"),
    ("evicted, still alive", pod_of(), (con(),), {"verdict": FULL}, "Pending"),
    ("evicted, went in peace", pod_of("Never"), (GOOD_RUN,), {"verdict": FULL, "over": True}, "Failed"),
]


@pytest.mark.parametrize(
    ("pod", "containers", "changes", "phase"), [c[1:] for c in PHASES], ids=[c[0] for c in PHASES]
)
def test_phase(pod: Any, containers: tuple[ContainerFact, ...], changes: dict[str, Any], phase: str) -> None:
    assert status(pod, *containers, **changes).phase == phase


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_terminal_phases_stay(phase: str) -> None:
    pod = make_pod(status={"phase": phase, "reason": "Because", "message": "of you"})
    made = status(pod, con())
    assert (made.phase, made.reason, made.message) == (phase, "Because", "of you")


def conditions(made: PodStatus) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in made.conditions}


def test_conditions_of_a_running_pod() -> None:
    assert conditions(status(pod_of(), con())) == {
        "PodReadyToStartContainers": ("True", ""),
        "Initialized": ("True", ""),
        "Ready": ("True", ""),
        "ContainersReady": ("True", ""),
        "PodScheduled": ("True", ""),
    }


def test_conditions_of_a_starting_pod_name_what_is_missing() -> None:
    made = status(pod_of("Always", ONE), boxes=())
    assert conditions(made)["PodReadyToStartContainers"] == ("False", "")
    found = {c.type: (c.reason, c.message) for c in made.conditions}
    assert found["Initialized"] == ("ContainersNotInitialized", "containers with incomplete status: [one]")
    assert found["Ready"] == ("ContainersNotReady", "containers with unready status: [app]")


@pytest.mark.parametrize(
    ("policy", "code", "reason"), [("Never", 0, "PodCompleted"), ("Never", 1, "PodFailed")]
)
def test_conditions_of_an_ended_pod(policy: str, code: int, reason: str) -> None:
    found = conditions(status(pod_of(policy), con(state=EXITED, code=code)))
    assert found["Ready"] == found["ContainersReady"] == ("False", reason)


def test_readiness_gates_need_their_condition() -> None:
    pod = make_pod(spec={"readinessGates": [{"conditionType": "lb"}]})
    made = status(pod, con())
    assert conditions(made)["Ready"] == ("False", "ReadinessGatesNotReady")
    assert conditions(made)["ContainersReady"] == ("True", "")
    given = msgspec.structs.replace(pod.status, conditions=(Condition(type="lb", status="True"),))
    met = status(msgspec.structs.replace(pod, status=given), con())
    assert conditions(met)["Ready"] == ("True", "") and conditions(met)["lb"] == ("True", "")


def test_transition_time_changes_only_with_the_status() -> None:
    first = status(pod_of(), con())
    later = status(pod_of(), con(), previous=first, now=200.0)
    assert first == later
    unready = status(pod_of(), con(), previous=first, now=200.0, ready=frozenset())
    times = {c.type: c.last_transition_time for c in unready.conditions}
    assert times["Ready"] == "1970-01-01T00:03:20Z" and times["Initialized"] == "1970-01-01T00:01:40Z"


def test_observed_generation_follows_the_spec() -> None:
    made = status(make_pod(metadata={"generation": 7}), con())
    assert made.observed_generation == 7 and {c.observed_generation for c in made.conditions} == {7}


def test_container_states() -> None:
    running = status(pod_of(), con()).container_statuses[0]
    assert running.state.running == ContainerStateRunning(started_at="1970-01-01T00:00:11Z")
    assert (running.container_id, running.image_id) == ("nodelet-cri://app-0", "busybox@sha256:1")
    ended = status(pod_of("Never"), con(state=EXITED, code=3, reason="Error")).container_statuses[0]
    assert ended.state.terminated is not None
    assert (ended.state.terminated.exit_code, ended.state.terminated.reason) == (3, "Error")
    lost = status(pod_of("Never"), con(state=UNKNOWN)).container_statuses[0]
    assert lost.state.terminated is not None
    assert (lost.state.terminated.exit_code, lost.state.terminated.reason) == (137, "ContainerStatusUnknown")


def test_last_state_is_the_run_before() -> None:
    before = con(state=EXITED, code=9, id="app-0")
    now = con(id="app-1", attempt=1, restart_count=1)
    made = status(pod_of(), now, before).container_statuses[0]
    assert made.restart_count == 1 and made.last_state.terminated is not None
    assert made.last_state.terminated.exit_code == 9


def test_a_hold_moves_the_ended_run_to_last_state() -> None:
    made = status(pod_of(), FAILED_RUN, holds=WAIT).container_statuses[0]
    assert made.state.waiting is not None and made.state.waiting.reason == "CrashLoopBackOff"
    assert made.last_state.terminated is not None and made.last_state.terminated.exit_code == 1


@pytest.mark.parametrize(("inits", "reason"), [((), "ContainerCreating"), ((ONE,), "PodInitializing")])
def test_a_container_that_never_ran_waits(inits: tuple[dict[str, Any], ...], reason: str) -> None:
    made = status(pod_of("Always", *inits))
    for waits in (*made.init_container_statuses, *made.container_statuses):
        assert waits.state.waiting is not None and waits.state.waiting.reason == reason
        assert waits.container_id == "" and waits.started is False


@pytest.mark.parametrize(("inits", "reason"), [((), "ContainerCreating"), ((ONE,), "PodInitializing")])
def test_a_container_about_to_start_waits_for_the_same_reason(inits: tuple[Any, ...], reason: str) -> None:
    made = status(pod_of("Always", *inits), con("one", state=CREATED), con(state=CREATED))
    for waits in (*made.init_container_statuses, *made.container_statuses):
        assert waits.state.waiting is not None and waits.state.waiting.reason == reason


def test_a_container_the_runtime_lost_counts_as_a_crash() -> None:
    old = ContainerStatus(
        name="app",
        container_id="nodelet-cri://old",
        restart_count=4,
        state=ContainerState(running=ContainerStateRunning(started_at="1970-01-01T00:00:11Z")),
    )
    pod = msgspec.structs.replace(pod_of(), status=PodStatus(phase="Running", container_statuses=(old,)))
    made = status(pod, boxes=()).container_statuses[0]
    assert made.restart_count == 5 and made.last_state.terminated is not None
    assert made.last_state.terminated.reason == "ContainerStatusUnknown"


def test_restart_counts_never_fall() -> None:
    old = ContainerStatus(name="app", restart_count=6)
    pod = msgspec.structs.replace(pod_of(), status=PodStatus(phase="Running", container_statuses=(old,)))
    assert status(pod, con(restart_count=2)).container_statuses[0].restart_count == 6


def test_a_lost_init_container_of_an_initialised_pod_counts_as_done() -> None:
    made = status(pod_of("Always", ONE), con())
    assert made.init_container_statuses[0].ready and made.phase == "Running"


def test_host_network_pods_have_the_nodes_address() -> None:
    pod = make_pod(spec={"hostNetwork": True})
    made = status(pod, con(), boxes=(SandboxFact(id="box", host_network=True),))
    assert (made.pod_ip, made.host_ip) == ("192.0.2.1", "192.0.2.1")
    assert conditions(made)["PodReadyToStartContainers"] == ("True", "")


def test_eviction_is_told_as_a_disruption() -> None:
    verdict = Verdict(reason="Evicted", message="The node was low on resource: memory.", disruption=True)
    assert "DisruptionTarget" not in conditions(status(pod_of(), con(), verdict=verdict))
    made = status(pod_of(), con(state=EXITED), verdict=verdict, over=True)
    assert conditions(made)["DisruptionTarget"] == ("True", "TerminationByKubelet")
    again = status(pod_of(), con(state=EXITED), previous=made)
    assert conditions(again)["DisruptionTarget"] == ("True", "TerminationByKubelet")


def test_the_patch_leaves_others_conditions_alone_and_clears_old_texts() -> None:
    pod = make_pod(status={"phase": "Pending", "conditions": [{"type": "lb", "status": "True"}]})
    body = status_patch(status(pod, con()), uid="u1")
    assert body["metadata"] == {"uid": "u1"}
    assert "lb" not in [c["type"] for c in body["status"]["conditions"]]
    ready = next(c for c in body["status"]["conditions"] if c["type"] == "Ready")
    assert ready["message"] is None and ready["reason"] is None
    assert body["status"]["podIPs"] == [{"$patch": "replace"}, {"ip": "10.0.0.1"}]
    assert body["status"]["containerStatuses"][0]["started"] is True
    # An API server takes a container without it for one of a node that cannot resize.
    assert body["status"]["containerStatuses"][0]["resources"] == {}


@pytest.mark.parametrize(
    ("mount", "told"),
    [
        ({}, None),
        ({"readOnly": True}, "Disabled"),
        ({"readOnly": True, "recursiveReadOnly": "Disabled"}, "Disabled"),
        ({"readOnly": True, "recursiveReadOnly": "IfPossible"}, "Enabled"),
        ({"readOnly": True, "recursiveReadOnly": "Enabled"}, "Enabled"),
    ],
)
def test_what_became_of_recursive_read_only(mount: dict[str, Any], told: str | None) -> None:
    wanted = {"name": "v", "mountPath": "/v", **mount}
    pod = make_pod(spec={"containers": [{"name": "app", "image": "i", "volumeMounts": [wanted]}]})
    ((shown,),) = [each.volume_mounts for each in status(pod, con()).container_statuses]
    assert (shown.mount_path, shown.recursive_read_only) == ("/v", told)
