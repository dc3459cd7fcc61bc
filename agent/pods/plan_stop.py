"""What to do next for a pod that has to go, or whose work is over: the mirror of `plan`. Pure.

Order: perhaps a hold (`holdTermination`); app containers together, then sidecars one by one in reverse start
order (KEP-753), each with what is left of the grace; when all are dead, sandbox and volumes side by side;
last, if nothing shall stay, the sandbox with its dead containers and the cgroup. A pod that ended by itself
keeps its dead containers, for their logs.
"""

from __future__ import annotations

from agent.api.structs import Pod
from agent.pods import spec
from agent.pods.actions import (
    Action,
    Finished,
    Job,
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
from agent.pods.facts import ContainerFact, State

MINIMUM_GRACE = 2.0
"""Seconds a sidecar gets even when the app containers used up all the grace, as kubelet's minimum."""
EARLIER = 0.5
"""Seconds by which a new deadline must be earlier to replace a kill under way."""


def plan_stop(pod: Pod, seen: Observed, stop: Stop | None) -> list[Action]:
    """The next actions towards nothing running; `stop` None means that the pod ended by itself."""
    if seen.hold_until is not None and not any(key.startswith("kill:") for key in seen.jobs):
        return [Wait(seen.hold_until)]
    order = stop or Stop(began=seen.now, grace=float(spec.grace_seconds(pod)), release=False)
    kills = _kills(pod, seen, order)
    if kills or any(c.alive or c.state is State.UNKNOWN for c in seen.facts.containers):
        return kills
    if any(key == "sandbox" or key.startswith("start:") for key in seen.jobs):
        return []  # what they leave behind is only known when they end
    actions = _free(seen, release=order.release)
    return [a for a in actions if getattr(a, "key", None) not in seen.jobs]


def _kills(pod: Pod, seen: Observed, stop: Stop) -> list[Action]:
    actions: list[Action] = []
    deadline = stop.began + stop.grace
    for fact in _next_to_die(pod, seen):
        if fact.state is State.CREATED:
            if f"start:{fact.name}" not in seen.jobs:
                actions += retrying(seen, RemoveContainer(fact.id))
            continue
        last = fact.name in {c.name for c in spec.sidecars(pod)}
        until = max(deadline, seen.now + MINIMUM_GRACE) if last and stop.grace > 1 else deadline
        kill = KillContainer(fact.name, fact.id, until, f"Stopping container {fact.name}")
        if kill.key in seen.jobs:
            aim = seen.jobs[kill.key]
            if aim is None or deadline >= aim - EARLIER or last:
                continue
        actions += retrying(seen, kill)
    return [a for a in actions if isinstance(a, KillContainer) or getattr(a, "key", None) not in seen.jobs]


def _next_to_die(pod: Pod, seen: Observed) -> list[ContainerFact]:
    """Everything alive but the sidecars; when nothing else is, the last started of those."""
    alive = [c for c in seen.facts.containers if c.alive or c.state is State.UNKNOWN]
    order = [c.name for c in spec.sidecars(pod)]
    first = [c for c in alive if c.name not in order]
    if first:
        return first
    alive.sort(key=lambda c: order.index(c.name))
    return alive[-1:]


def _free(seen: Observed, *, release: bool) -> list[Action]:
    actions: list[Action] = []
    for box in seen.facts.sandboxes:
        if box.ready:
            actions += retrying(seen, StopSandbox(box.id))
    if seen.volumes is not Volumes.GONE and "volumes" not in seen.jobs:
        actions += retrying(seen, TeardownVolumes())
    if actions or any(key.startswith("stop:") or key in ("teardown", "volumes") for key in seen.jobs):
        return actions
    if release:
        for box in seen.facts.sandboxes:
            actions += retrying(seen, RemoveSandbox(box.id))
        homes = {box.id for box in seen.facts.sandboxes}
        for fact in seen.facts.containers:
            if fact.sandbox_id not in homes:
                actions += retrying(seen, RemoveContainer(fact.id))
        if actions:
            return actions
    if seen.cgroup:
        return retrying(seen, RemoveCgroup())
    return [Finished()] if release and not seen.jobs else []


def retrying(seen: Observed, action: Job) -> list[Action]:
    """The action, or the wait until it may be tried again."""
    failure = seen.failures.get(action.key)
    if failure is not None and failure.retry > seen.now:
        return [Wait(failure.retry)]
    return [action]
