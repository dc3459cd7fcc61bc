"""Which limits of a running pod change in place, and in which order: granted against in force. Pure.

What is in force is asked of the runtime, not remembered, so a resize that a crash interrupted is taken up
where it stopped. The pod's cgroup is widened before its containers and narrowed after them, because the
kernel refuses a child that may use more CPU than its parent, and would kill in a parent that is too small;
among the containers those that shrink come first. A container whose resizePolicy says so restarts instead.

Source: KEP-1287; pkg/kubelet/kuberuntime/kuberuntime_manager.go (computePodResizeAction), v1.37.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.api.structs import Container, Pod
from agent.pods import facts as cri
from agent.pods import spec
from agent.pods.actions import Action, Change, KillContainer, Observed, ResizePod
from agent.pods.facts import ContainerFact, Figures, State
from agent.pods.translate import memory_request

_LIFTED = -1
_KINDS = ("memory", "cpu")


@dataclass(frozen=True)
class Step:
    """New limits of one container, or of the pod's cgroup (no id); 0 leaves a limit as it is, -1 lifts it."""

    id: str
    figures: Figures


def plan_resize(pod: Pod, seen: Observed) -> list[Action]:
    """Kills of containers that must restart, and the change of all others; empty when all is as granted."""
    changes, kills = [], []
    for container in (*pod.spec.containers, *pod.spec.init_containers):
        fact = seen.facts.latest(container.name)
        wanted = seen.figures.get(container.name)
        if fact is None or wanted is None or fact.figures is None or fact.state is not State.RUNNING:
            continue
        if _restart(container, fact, wanted):
            until = seen.now + spec.grace_seconds(pod)
            text = f"Container {container.name} resize requires restart"
            kills.append(KillContainer(container.name, fact.id, until, text, again=True))
        elif differs(wanted, fact.figures):
            changes.append(Change(fact.id, container.name, wanted, fact.figures))
    box = seen.facts.sandbox
    if box is None or not box.ready or seen.pod_figures is None:
        return list(kills)
    goal = seen.pod_figures
    if kills and seen.pod_in_force is not None:
        goal = _wider(seen.pod_in_force, goal)  # what is killed still uses what it had
    if not changes and goal == seen.pod_in_force:
        return list(kills)
    return [*kills, ResizePod(box.id, goal, seen.pod_in_force, tuple(changes))]


def resizing(pod: Pod, seen: Observed) -> bool:
    """Whether a granted resize is not yet in force. A pod cgroup that nobody has looked at does not count."""
    todo = plan_resize(pod, seen)
    return any(not isinstance(a, ResizePod) or a.changes or a.in_force is not None for a in todo)


def differs(wanted: Figures, now: Figures) -> bool:
    """Whether a container's limits have to change."""
    return _memory(wanted) != _memory(now) or _cpu(wanted) != _cpu(now)


def steps(action: ResizePod) -> Iterator[Step]:
    """The writes, in an order in which the kernel takes each of them."""
    for kind in _KINDS:
        part = _memory_part if kind == "memory" else _cpu_part
        changes = [c for c in action.changes if part(c.wanted) != part(c.now)]
        before, after = _around(kind, action, busy=bool(changes))
        yield from before
        for change in sorted(changes, key=lambda c: _grows(kind, c.now, c.wanted)):
            yield Step(change.id, part(change.wanted))
        yield from after


def _around(kind: str, action: ResizePod, *, busy: bool) -> tuple[list[Step], list[Step]]:
    """The pod's own writes before and after its containers'."""
    part = _memory_part if kind == "memory" else _cpu_part
    goal, now = action.goal, action.in_force
    if now is None:
        lifted = Figures(memory_limit=_LIFTED) if kind == "memory" else Figures(cpu_quota=_LIFTED)
        return ([Step("", lifted)] if busy else []), [Step("", part(goal))] if _any(part(goal)) else []
    if part(goal) == part(now):
        return [], []
    step = [Step("", part(goal))]
    return (step, []) if _grows(kind, now, goal) else ([], step)


def _restart(container: Container, fact: ContainerFact, wanted: Figures) -> bool:
    policies = {p.resource_name: p.restart_policy for p in container.resize_policy}
    assert fact.figures is not None
    asked = fact.annotations.get(cri.ANNOTATION_MEMORY)
    memory = _memory(wanted) != _memory(fact.figures) or asked not in (None, memory_request(container))
    cpu = _cpu(wanted) != _cpu(fact.figures)
    changed = (("memory", memory), ("cpu", cpu))
    return any(change and policies.get(name) == "RestartContainer" for name, change in changed)


def _wider(left: Figures, right: Figures) -> Figures:
    return Figures(
        cpu_shares=max(left.cpu_shares, right.cpu_shares),
        cpu_quota=max(left.cpu_quota, right.cpu_quota) if left.cpu_quota and right.cpu_quota else 0,
        cpu_period=right.cpu_period or left.cpu_period,
        memory_limit=max(left.memory_limit, right.memory_limit)
        if left.memory_limit and right.memory_limit
        else 0,
        memory_swap=right.memory_swap,
    )


def _memory(figures: Figures) -> int:
    return figures.memory_limit


def _cpu(figures: Figures) -> tuple[int, int]:
    return figures.cpu_shares, figures.cpu_quota


def _memory_part(figures: Figures) -> Figures:
    return Figures(memory_limit=figures.memory_limit, memory_swap=figures.memory_swap)


def _cpu_part(figures: Figures) -> Figures:
    period = figures.cpu_period if figures.cpu_quota else 0
    return Figures(cpu_shares=figures.cpu_shares, cpu_quota=figures.cpu_quota, cpu_period=period)


def _grows(kind: str, now: Figures, wanted: Figures) -> bool:
    """Whether the limit rises; no limit is more than any."""
    name = "memory_limit" if kind == "memory" else "cpu_quota"
    return (getattr(wanted, name) or float("inf")) > (getattr(now, name) or float("inf"))


def _any(figures: Figures) -> bool:
    return figures != Figures()
