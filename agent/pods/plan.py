"""What to do next for a pod that shall run: a pure function from spec and observation to actions.

The order it keeps: sandbox and volumes and images side by side; init containers one after the other, a
sidecar among them counting as done once it has started; app containers in spec order, each after the one
before has started (its postStart hook included). One container that fails or waits never holds back another
pod, and an app container that waits does not hold back the next.

A container's facts in an older sandbox count for the restart policy, not for the progress of
initialisation: a new sandbox runs all init containers again, as with kubelet.
"""

from __future__ import annotations

from dataclasses import replace

from agent.api.structs import Container, Pod
from agent.pods import spec
from agent.pods.actions import (
    Action,
    Failure,
    Hold,
    KillContainer,
    Observed,
    PrepareVolumes,
    PullImage,
    RemoveContainer,
    RemoveSandbox,
    ResizePod,
    RunSandbox,
    StartContainer,
    Volumes,
    Wait,
)
from agent.pods.facts import ContainerFact, PodFacts, SandboxFact, State
from agent.pods.plan_resize import plan_resize
from agent.pods.plan_restart_all import plan_restart_all
from agent.pods.plan_stop import plan_stop, retrying
from agent.pods.restart import finished, policy_of, restart_all_sources, restart_at, wants_start

FRESH = 2.0
"""Seconds a failure is shown by its own name before it is shown as a back-off."""


def plan(pod: Pod, seen: Observed) -> list[Action]:
    """The next actions. Empty when everything is as it should be, or jobs under way will tell more."""
    if seen.stop is not None:
        return plan_stop(pod, seen, seen.stop)
    sources = restart_all_sources(pod, seen.facts)
    if sources:
        return plan_restart_all(seen, sources)
    if finished(pod, seen.facts, seen.again):
        return plan_stop(pod, seen, None)
    actions = _kills(pod, seen) + _garbage(seen)
    kills = {a.key for a in actions if isinstance(a, KillContainer)}
    for change in plan_resize(pod, seen):
        if isinstance(change, KillContainer | ResizePod) and change.key not in kills:
            actions += retrying(seen, change)
    if seen.volumes is not Volumes.READY:
        actions += retrying(seen, PrepareVolumes())
    box = seen.facts.sandbox
    usable = box if box is not None and box.ready else None
    if usable is None:
        actions += _new_sandbox(pod, seen, box)
    for container, fact in _to_start(pod, seen, usable):
        more = _start(pod, seen, container, fact, usable)
        actions += more
        if any(isinstance(action, PullImage | StartContainer) for action in more) or not more:
            # Later containers start after this one; their images may come meanwhile.
            actions += _pull_ahead(pod, seen, container)
            break
    return [a for a in actions if getattr(a, "key", None) not in seen.jobs]


def _kills(pod: Pod, seen: Observed) -> list[Action]:
    """Containers that run and must not: condemned by a probe, changed, or left in a dead sandbox."""
    actions: list[Action] = []
    box = seen.facts.sandbox
    for fact in seen.facts.containers:
        if fact.state not in (State.RUNNING, State.UNKNOWN):
            continue
        container = spec.find_container(pod, fact.name)
        grace, again = float(spec.grace_seconds(pod)), False
        if fact.id in seen.condemned:
            message, grace, again = seen.condemned[fact.id]
            again = again and container is not None and policy_of(pod, container) != "Never"
        elif container is None:
            message = f"Stopping container {fact.name}"
        elif fact.hash and fact.hash != spec.container_hash(container):
            message, again = f"Container {fact.name} definition changed, will be restarted", True
        elif box is not None and fact.sandbox_id and (fact.sandbox_id != box.id or not box.ready):
            message = f"Stopping container {fact.name}"
        elif fact.state is State.UNKNOWN:
            message = f"Container {fact.name} is in unknown state, try killing it before restart"
        else:
            continue
        kill = KillContainer(fact.name, fact.id, seen.now + grace, message, again=again)
        actions += retrying(seen, kill)
    return actions


def _garbage(seen: Observed) -> list[Action]:
    """Dead containers beyond the newest and those to be kept, and old sandboxes without any of those."""
    facts, kept = seen.facts, dict[str, int]()
    actions: list[Action] = []
    homes = set()
    for fact in facts.containers:
        count = kept[fact.name] = kept.get(fact.name, 0) + 1
        surplus = seen.keep_dead >= 0 and count > 1 + seen.keep_dead
        if surplus and fact.state is State.EXITED and fact.finished_at <= seen.dead_since:
            actions.append(RemoveContainer(fact.id))
        else:
            homes.add(fact.sandbox_id)
    old = [box for box in facts.sandboxes[1:] if box.id not in homes]
    return actions + [RemoveSandbox(box.id) for box in old]


def _new_sandbox(pod: Pod, seen: Observed, box: SandboxFact | None) -> list[Action]:
    if any(fact.state in (State.RUNNING, State.UNKNOWN) for fact in seen.facts.containers):
        return []  # their kills are under way; a new sandbox comes after
    stale = tuple(s.id for s in seen.facts.sandboxes)
    return retrying(seen, RunSandbox(attempt=0 if box is None else box.attempt + 1, stop=stale))


def _to_start(
    pod: Pod, seen: Observed, box: SandboxFact | None
) -> list[tuple[Container, ContainerFact | None]]:
    """Containers that are due, in order, with the newest fact of each."""
    here = _in_sandbox(seen.facts, box)
    begun = any(here.latest(c.name) is not None for c in pod.spec.containers)
    due: list[tuple[Container, ContainerFact | None]] = []
    for container in pod.spec.init_containers:
        fact = here.latest(container.name)
        if spec.is_sidecar(container):
            if fact is None or fact.state is not State.RUNNING:
                due.append((container, fact))
            if not begun and (fact is None or fact.id not in seen.started):
                return due
        elif not begun and not (fact is not None and fact.state is State.EXITED and fact.exit_code == 0):
            if fact is None or fact.state is not State.RUNNING:
                due.append((container, fact))
            return due
    for container in (*pod.spec.containers, *pod.spec.ephemeral_containers):
        fact = seen.facts.latest(container.name)
        ephemeral = container in pod.spec.ephemeral_containers
        wanted = fact is None if ephemeral else wants_start(pod, container, fact, seen.again)
        if wanted or f"start:{container.name}" in seen.jobs:
            due.append((container, fact))
    return due


def _in_sandbox(facts: PodFacts, box: SandboxFact | None) -> PodFacts:
    if box is None:
        return replace(facts, containers=())
    return replace(facts, containers=tuple(c for c in facts.containers if c.sandbox_id in (box.id, "")))


def _start(
    pod: Pod, seen: Observed, container: Container, fact: ContainerFact | None, box: SandboxFact | None
) -> list[Action]:
    """What starting one container needs next: nothing while its job runs, a hold, its image, or the start."""
    if f"start:{container.name}" in seen.jobs:
        return []
    known = seen.facts.latest(container.name)
    if known is not None and known.state is State.CREATED:
        return [RemoveContainer(known.id), Hold(container.name, spec.waiting_reason(pod), "")]
    if known is not None and known.state is State.UNKNOWN:
        return [Hold(container.name, spec.waiting_reason(pod), "")]
    exited = seen.exits.get(known.id, seen.now) if known is not None else None
    due = restart_at(seen.backoffs.get(container.name), exited) if exited is not None else seen.now
    if due > seen.now:
        return [_crash_hold(pod, seen, container, due)]
    pull = PullImage(container.name, container.image)
    for key in (pull.key, f"start:{container.name}"):
        failure = seen.failures.get(key)
        if failure is not None and failure.retry > seen.now:
            return [_failure_hold(seen, container, failure)]
    image_id = seen.images.get(container.name)
    if image_id is None:
        return [] if pull.key in seen.jobs else [pull]
    if box is None or seen.volumes is not Volumes.READY or "resize" in seen.jobs:
        return []
    attempt = seen.restarts.get(container.name, 0) if known is None else known.restart_count + 1
    return [StartContainer(container.name, attempt, box.id, image_id, exited)]


def _crash_hold(pod: Pod, seen: Observed, container: Container, due: float) -> Hold:
    failure = seen.failures.get(f"start:{container.name}")
    if failure is not None and seen.now < failure.failed + FRESH:
        return Hold(container.name, failure.reason, failure.message, failure.failed + FRESH)
    delay = _duration(seen.backoffs[container.name].delay)
    message = f"back-off {delay} restarting failed container={container.name} pod={spec.full_name(pod)}"
    return Hold(container.name, "CrashLoopBackOff", message, due)


def _failure_hold(seen: Observed, container: Container, failure: Failure) -> Hold:
    fresh = failure.failed + FRESH
    if not failure.later:
        return Hold(container.name, failure.reason, failure.message, failure.retry)
    if seen.now < fresh:
        return Hold(container.name, failure.reason, failure.message, min(fresh, failure.retry))
    text = f'Back-off pulling image "{container.image}": {failure.reason}: {failure.message}'
    return Hold(container.name, failure.later, text, failure.retry)


def _pull_ahead(pod: Pod, seen: Observed, current: Container) -> list[Action]:
    """Images of the app containers after one that is being started, when that is an app container."""
    names = [c.name for c in pod.spec.containers]
    if current.name not in names:
        return []
    actions: list[Action] = []
    for container in pod.spec.containers[names.index(current.name) + 1 :]:
        missing = seen.facts.latest(container.name) is None and container.name not in seen.images
        if missing:
            actions += [
                a
                for a in retrying(seen, PullImage(container.name, container.image))
                if not isinstance(a, Wait)
            ]
    return actions


def _duration(seconds: float) -> str:
    """Seconds as Go prints them: 10s, 1m20s, 5m0s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
