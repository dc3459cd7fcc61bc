"""Resizes: which limits change, in which order, and when a container restarts instead; then whole pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from podkit import Node, Program, make_pod, running

from agent.api.structs import Pod
from agent.pods.actions import Change, KillContainer, Observed, ResizePod, Volumes
from agent.pods.allocation import Allocations, asked, granted, refusal, urgency
from agent.pods.facts import ANNOTATION_MEMORY, ContainerFact, Figures, PodFacts, SandboxFact, State
from agent.pods.plan_resize import plan_resize, resizing, steps
from agent.pods.status_patch import status_patch
from agent.resources.admission import NodeFacts

MI = 1 << 20
SMALL = Figures(cpu_shares=102, cpu_quota=10_000, cpu_period=100_000, memory_limit=50 * MI)
LARGE = Figures(cpu_shares=512, cpu_quota=50_000, cpu_period=100_000, memory_limit=100 * MI)
BOX = SandboxFact(id="box")


def fact(now: Figures | None, name: str = "app", **changes: Any) -> ContainerFact:
    given = {"state": State.RUNNING, "annotations": {}, **changes}
    return ContainerFact(id=f"{name}-0", name=name, sandbox_id="box", figures=now, **given)


def seen(
    *facts: ContainerFact, wanted: Mapping[str, Figures], pod: Figures | None, in_force: Figures | None
) -> Observed:
    return Observed(
        now=100.0,
        facts=PodFacts(uid="u1", sandboxes=(BOX,), containers=facts),
        volumes=Volumes.READY,
        figures=wanted,
        pod_figures=pod,
        pod_in_force=in_force,
    )


def one(now: Figures | None, wanted: Figures, **changes: Any) -> Observed:
    return seen(fact(now, **changes), wanted={"app": wanted}, pod=wanted, in_force=now)


def test_nothing_to_do_when_all_is_as_granted() -> None:
    assert plan_resize(make_pod(), one(SMALL, SMALL)) == []


def test_a_runtime_that_tells_no_limits_and_a_dead_container_are_left_alone() -> None:
    assert plan_resize(make_pod(), seen(fact(None), wanted={"app": LARGE}, pod=LARGE, in_force=LARGE)) == []
    dead = fact(SMALL, state=State.EXITED)
    assert plan_resize(make_pod(), seen(dead, wanted={"app": LARGE}, pod=LARGE, in_force=LARGE)) == []


def test_the_pod_widens_before_its_containers_and_narrows_after_them() -> None:
    up = plan_resize(make_pod(), one(SMALL, LARGE))
    assert up == [ResizePod("box", LARGE, SMALL, (Change("app-0", "app", LARGE, SMALL),))]
    memory, cpu = Figures(memory_limit=100 * MI), replace(LARGE, memory_limit=0)
    assert isinstance(up[0], ResizePod)
    assert [(s.id, s.figures) for s in steps(up[0])] == [
        ("", memory),
        ("app-0", memory),
        ("", cpu),
        ("app-0", cpu),
    ]
    (down,) = plan_resize(make_pod(), one(LARGE, SMALL))
    assert isinstance(down, ResizePod)
    assert [s.id for s in steps(down)] == ["app-0", "", "app-0", ""]


def test_containers_that_shrink_come_first() -> None:
    facts = (fact(SMALL, "app"), fact(LARGE, "b"))
    pod = make_pod(spec={"containers": [{"name": n, "image": "busybox"} for n in ("app", "b")]})
    sum_ = Figures(cpu_shares=614, cpu_quota=60_000, cpu_period=100_000, memory_limit=150 * MI)
    swap = seen(*facts, wanted={"app": LARGE, "b": SMALL}, pod=sum_, in_force=sum_)
    (action,) = plan_resize(pod, swap)
    assert isinstance(action, ResizePod)
    assert [s.id for s in steps(action)] == ["b-0", "app-0", "b-0", "app-0"]


def test_after_an_agent_restart_the_pods_limits_are_lifted_until_the_containers_are_through() -> None:
    (action,) = plan_resize(make_pod(), seen(fact(SMALL), wanted={"app": LARGE}, pod=LARGE, in_force=None))
    assert isinstance(action, ResizePod)
    first, second, third, *_ = steps(action)
    assert (first.id, first.figures) == ("", Figures(memory_limit=-1))
    assert (second.id, third.id) == ("app-0", "")
    quiet = seen(fact(SMALL), wanted={"app": SMALL}, pod=SMALL, in_force=None)
    (again,) = plan_resize(make_pod(), quiet)
    assert isinstance(again, ResizePod)
    assert {s.id for s in steps(again)} == {""}
    assert not resizing(make_pod(), quiet)


@pytest.mark.parametrize(
    ("resource", "wanted", "restarts"),
    [
        ("cpu", replace(SMALL, cpu_quota=20_000), True),
        ("cpu", replace(SMALL, memory_limit=60 * MI), False),
        ("memory", replace(SMALL, memory_limit=60 * MI), True),
        ("memory", replace(SMALL, cpu_shares=200), False),
    ],
)
def test_a_container_restarts_where_its_policy_says_so(
    resource: str, wanted: Figures, restarts: bool
) -> None:
    policy = [{"resourceName": resource, "restartPolicy": "RestartContainer"}]
    pod = make_pod(spec={"containers": [{"name": "app", "image": "busybox", "resizePolicy": policy}]})
    kinds = [type(a) for a in plan_resize(pod, one(SMALL, wanted))]
    assert kinds == ([KillContainer, ResizePod] if restarts else [ResizePod])


def test_a_memory_request_alone_restarts_too_though_the_kernel_does_not_know_it() -> None:
    container = {
        "name": "app",
        "image": "busybox",
        "resources": {"requests": {"memory": "40Mi"}},
        "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}],
    }
    pod = make_pod(spec={"containers": [container]})
    same = one(SMALL, SMALL, annotations={ANNOTATION_MEMORY: str(40 * MI)})
    other = one(SMALL, SMALL, annotations={ANNOTATION_MEMORY: str(30 * MI)})
    assert plan_resize(pod, same) == []
    (kill,) = plan_resize(pod, other)
    assert isinstance(kill, KillContainer) and kill.again


def test_while_a_container_is_killed_the_pod_keeps_room_for_it() -> None:
    policy = [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]
    pod = make_pod(spec={"containers": [{"name": "app", "image": "busybox", "resizePolicy": policy}]})
    assert [type(a) for a in plan_resize(pod, one(LARGE, SMALL))] == [KillContainer]


# --- the grant --------------------------------------------------------------------------------------------


def sized(cpu: str, memory: str = "100Mi", *, uid: str = "u1", generation: int = 1, **spec: Any) -> Pod:
    figures = {"cpu": cpu, "memory": memory}
    resources = {"requests": figures, "limits": figures}
    container = {"name": "app", "image": "busybox", "resources": resources, **spec}
    meta = {"uid": uid, "name": "web" if uid == "u1" else uid, "generation": generation}
    return make_pod(metadata=meta, spec={"containers": [container]})


NODE = NodeFacts(name="n1", allocatable={"cpu": "2", "memory": "1Gi", "pods": "110"})


@pytest.mark.parametrize(
    ("cpu", "reason"), [("1", None), ("1500m", "Deferred"), ("3", "Infeasible"), ("100m", None)]
)
def test_what_fits_is_granted(cpu: str, reason: str | None) -> None:
    found = refusal(sized(cpu), [sized("1", uid="other")], NODE)
    assert (found.reason if found else None) == reason


def test_resizes_that_give_back_come_first_then_priority_then_age() -> None:
    old = asked(sized("1"))
    order = [urgency(sized("500m"), old, 9.0), urgency(sized("2"), old, 1.0), urgency(sized("2"), old, 2.0)]
    assert order == sorted(order)
    critical = msgspec.structs.replace(sized("2").spec, priority=5)
    assert urgency(msgspec.structs.replace(sized("2"), spec=critical), old, 9.0) < order[1]


def test_a_grant_outlives_the_agent_and_other_fields_follow_the_spec(tmp_path: Path) -> None:
    before = Allocations(tmp_path)
    before.grant(sized("1"))
    bigger = sized("2", generation=7)
    after = Allocations(tmp_path)
    view = granted(bigger, after.of(bigger))
    assert view.spec.containers[0].resources.requests["cpu"] == "1"
    assert view.metadata.generation == 7
    after.path("u1").write_text("{")
    assert Allocations(tmp_path).of(bigger) == asked(bigger)


def test_a_pod_that_asks_for_nothing_leaves_no_record(tmp_path: Path) -> None:
    Allocations(tmp_path).grant(make_pod())
    assert list(tmp_path.iterdir()) == []


# --- a whole node -----------------------------------------------------------------------------------------


def in_api(node: Node) -> dict[str, Any]:
    return {c["type"]: c for c in node.api.patches[-1]["conditions"]}


def pending_reason(node: Node) -> str:
    return next(c.reason for c in node.pod().status.conditions if c.type == "PodResizePending")


async def test_a_resize_changes_the_kernels_figures_and_says_so(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.facts = NODE
        await node.put(sized("500m"))
        assert "PodResizeInProgress" not in in_api(node)
        node.cgroups.updates.clear()
        await node.put(sized("1", "200Mi", generation=2))
        (container,) = node.cri.containers()
        assert container.figures == Figures(
            cpu_shares=1024, cpu_quota=100_000, cpu_period=100_000, memory_limit=200 * MI
        )
        assert (container.restart_count, len(node.cri.containers())) == (0, 1)
        pod = [given for path, given in node.cgroups.updates if path == "/lab/kubepods/podu1"]
        assert pod[0] == {"memory_limit": 200 * MI}
        assert node.events.reasons[-2:] == ["ResizeStarted", "ResizeCompleted"]
        status = node.state()
        assert status.allocated_resources == {"cpu": "1", "memory": "200Mi"}
        assert status.resources is not None and status.resources.limits == {"cpu": "1", "memory": "200Mi"}
        assert node.pod().status.observed_generation == 2


async def test_a_resize_that_does_not_fit_waits_for_room(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.facts = NODE
        await node.put(sized("1"))
        other = sized("1", uid="other")
        await node.put(other)
        await node.put(sized("1500m", generation=2))
        pending = next(c for c in node.pod().status.conditions if c.type == "PodResizePending")
        assert (pending.status, pending.reason, pending.observed_generation) == ("True", "Deferred", 2)
        assert "cpu, requested: 1500, used: 1000, capacity: 2000" in pending.message
        assert node.events.reasons.count("ResizeDeferred") == 1
        assert node.state().allocated_resources["cpu"] == "1"
        node.manager.remove(other)
        await node.settle()
        assert node.state().allocated_resources["cpu"] == "1500m"
        told = [c for patch in node.api.patches for c in patch["conditions"]]
        assert {"$patch": "delete", "type": "PodResizePending"} in told


async def test_an_infeasible_resize_is_refused_and_can_be_taken_back(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.facts = NODE
        await node.put(sized("1"))
        await node.put(sized("5", generation=2))
        assert pending_reason(node) == "Infeasible"
        await node.put(sized("1", generation=3))
        assert "PodResizePending" not in {c.type for c in node.pod().status.conditions}
        assert len(node.cri.containers()) == 1


async def test_a_limit_below_what_is_in_use_is_an_error_that_is_tried_again(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.facts = NODE
        await node.put(sized("1", "200Mi"))
        node.cri.memory_usage = 150 * MI
        await node.put(sized("1", "100Mi", generation=2))
        progress = next(c for c in node.pod().status.conditions if c.type == "PodResizeInProgress")
        assert (progress.reason, progress.observed_generation) == ("Error", 2)
        assert f'container "app" memory limit ({100 * MI}) below current usage' in progress.message
        resources = node.state().resources
        assert resources is not None and resources.limits["memory"] == str(200 * MI)
        assert node.state().allocated_resources["memory"] == "100Mi"
        node.cri.memory_usage = MI
        await node.advance(1)
        assert node.cri.containers()[0].figures.memory_limit == 100 * MI  # type: ignore[union-attr]
        assert "PodResizeInProgress" not in {c.type for c in node.pod().status.conditions}


async def test_a_container_that_has_to_restart_does_so_though_it_ends_well(tmp_path: Path) -> None:
    policy = [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]
    async with running(Node(tmp_path)) as node:
        node.facts = NODE
        node.cri.programs["app"] = Program(on_term=0)
        before = sized("1", "200Mi", resizePolicy=policy)
        after = sized("1", "100Mi", generation=2, resizePolicy=policy)
        calm = [msgspec.structs.replace(p.spec, restart_policy="OnFailure") for p in (before, after)]
        await node.put(msgspec.structs.replace(before, spec=calm[0]))
        await node.put(msgspec.structs.replace(after, spec=calm[1]))
        await node.advance(1)
        assert ("Killing", "Container app resize requires restart") in node.events.seen
        assert (node.phase(), node.state().restart_count) == ("Running", 1)
        newest = max(node.cri.containers(), key=lambda c: c.attempt)
        assert newest.figures is not None and newest.figures.memory_limit == 100 * MI
        pod = node.cgroups.paths["/lab/kubepods/podu1"]
        assert pod is not None and pod.memory_limit == 100 * MI


async def test_a_resize_that_a_crash_interrupted_is_finished_by_the_next_agent(tmp_path: Path) -> None:
    first = Node(tmp_path)
    async with running(first) as node:
        node.facts = NODE
        await node.put(sized("500m"))
        node.cri.broken["update_container"] = "the runtime is away"
        await node.put(sized("1", generation=2))
    first.cri.broken.clear()
    second = Node(tmp_path, cri=first.cri, clock=first.clock, cgroups=first.cgroups)
    second.facts = NODE
    async with running(second, sized("1", generation=2)) as node:
        await node.settle()
        (container,) = node.cri.containers()
        assert container.figures is not None and container.figures.cpu_quota == 100_000
        assert node.cgroups.paths["/lab/kubepods/podu1"].cpu_quota_us == 100_000


async def test_an_agent_that_starts_does_not_take_a_waiting_resize_for_granted(tmp_path: Path) -> None:
    first = Node(tmp_path)
    async with running(first) as node:
        node.facts = NODE
        await node.put(sized("500m"))
    second = Node(tmp_path, cri=first.cri, clock=first.clock, cgroups=first.cgroups)
    second.facts = NODE
    async with running(second, sized("3", generation=2)) as node:
        assert node.state().allocated_resources["cpu"] == "500m"
        assert pending_reason(node) == "Infeasible"


def test_a_condition_of_ours_that_is_over_is_deleted_in_the_api() -> None:
    pod = make_pod(status={"conditions": [{"type": "PodResizePending", "status": "True"}]})
    body = status_patch(make_pod().status, uid="u1", before=pod.status)
    assert body["status"]["conditions"] == [{"$patch": "delete", "type": "PodResizePending"}]
