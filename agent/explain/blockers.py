"""What keeps a pod from where it should be, each with its cause: a pure function of the situation.

In the order in which the node works: stopping, volumes, sandbox and network, then each container (image,
start, back-off, startup probe, readiness probe), then readiness gates and a resize that is not granted.
Nothing is guessed: a blocker names a job under way, a job that failed, a container's wait, or a probe's last
answer.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.api.structs import Container
from agent.explain.documents import Blocker
from agent.explain.situation import Situation
from agent.explain.words import duration
from agent.pods import spec
from agent.pods.facts import ContainerFact, State
from agent.pods.last_words import OOM_KILLED, ending
from agent.pods.restart import restart_at
from agent.probes.manager import ProbeStory
from agent.probes.state import Kind, Outcome

TERMINAL = ("Succeeded", "Failed")


def blockers(seen: Situation) -> tuple[Blocker, ...]:
    """What is in the pod's way; empty when it is as it should be, or has ended by itself."""
    if seen.verdict is not None and not seen.removed:
        cause = f"{seen.verdict.reason}: {seen.verdict.message}"
        return (Blocker(what="refused or ended by the node", cause=cause), *_stopping(seen))
    if seen.stop is not None or seen.removed:
        return tuple(_stopping(seen))
    if seen.status.phase in TERMINAL:
        return ()
    return (*_ground(seen), *_containers(seen), *_gates(seen), *_resize(seen))


def _stopping(seen: Situation) -> Iterator[Blocker]:
    """A pod that is to go: the containers that still run, and the jobs that are not through."""
    for fact in seen.facts.containers:
        if fact.state is not State.RUNNING:
            continue
        key = f"kill:{fact.id}"
        if key in seen.failures:
            yield _failed(seen, f"stopping container {fact.name}", key)
            continue
        left = None
        if seen.stop is not None:
            left = max(0.0, seen.stop.began + seen.stop.grace - seen.now)
        cause = "it was told to stop and has not ended"
        if left is not None:
            cause += (
                f"; it is killed in {duration(left)}" if left else "; its grace is over, it is being killed"
            )
        yield Blocker(what=f"container {fact.name} still runs", cause=cause, since=_age(seen, key))
    for key in ("teardown", "cgroup", *(f"stop:{s.id}" for s in seen.facts.sandboxes)):
        if key in seen.failures:
            yield _failed(seen, JOBS[key.partition(":")[0]], key)
        elif key in seen.jobs:
            yield Blocker(what=JOBS[key.partition(":")[0]], cause="under way", since=_age(seen, key))


JOBS = {
    "volumes": "mounting volumes",
    "sandbox": "making the sandbox and its network",
    "pull": "getting the image",
    "start": "starting the container",
    "kill": "stopping the container",
    "stop": "stopping the sandbox and its network",
    "remove": "removing what has ended",
    "teardown": "unmounting volumes",
    "cgroup": "removing the pod's cgroup",
}
"""Jobs of a worker by the first word of their keys."""


def _ground(seen: Situation) -> Iterator[Blocker]:
    """What all containers stand on."""
    for key in ("volumes", "sandbox"):
        if key in seen.jobs:
            yield Blocker(what=JOBS[key], cause="under way", since=_age(seen, key))
        elif key in seen.failures:
            yield _failed(seen, JOBS[key], key)


def _containers(seen: Situation) -> Iterator[Blocker]:
    for container in seen.pod.spec.init_containers:
        found = list(_container(seen, container, init=not spec.is_sidecar(container)))
        yield from found
        if found and not any(seen.facts.latest(c.name) for c in seen.pod.spec.containers):
            return  # the ones after it wait for it
    for container in seen.pod.spec.containers:
        yield from _container(seen, container, init=False)


def _container(seen: Situation, container: Container, *, init: bool) -> Iterator[Blocker]:
    name, fact = container.name, seen.facts.latest(container.name)
    what = f"{'init container' if init else 'container'} {name}"
    pull = f"pull:{name}:{container.image}"
    if name in seen.holds:
        yield _held(seen, what, container, fact)
    elif pull in seen.jobs:
        cause = seen.notes.get(name) or f"getting image {container.image}"
        yield Blocker(what=what, cause=cause, since=_age(seen, pull))
    elif fact is not None and fact.id in seen.hooking:
        yield Blocker(
            what=what, cause="its postStart hook has not ended", since=_since(seen, fact.started_at)
        )
    elif f"start:{name}" in seen.jobs:
        yield Blocker(what=what, cause="being started", since=_age(seen, f"start:{name}"))
    elif fact is not None and fact.state is State.RUNNING:
        if init:
            yield Blocker(what=what, cause="it runs and has not ended", since=_since(seen, fact.started_at))
        else:
            yield from _probing(seen, what, fact)


def _held(seen: Situation, what: str, container: Container, fact: ContainerFact | None) -> Blocker:
    """A container the node does not start now."""
    reason, message = seen.holds[container.name]
    if reason == "CrashLoopBackOff" and fact is not None and fact.dead:
        exited = seen.exits.get(fact.id, seen.now)
        due = restart_at(seen.backoffs.get(container.name), exited)
        cause = f"{reason}: {_crash(seen, fact)}"
        return Blocker(
            what=what, cause=cause, since=max(0.0, seen.now - exited), until=max(0.0, due - seen.now)
        )
    for key in (f"pull:{container.name}:{container.image}", f"start:{container.name}"):
        failure = seen.failures.get(key)
        if failure is not None:
            cause = f"{reason}: {failure.message}"
            return Blocker(
                what=what,
                cause=cause,
                since=max(0.0, seen.now - failure.failed),
                until=max(0.0, failure.retry - seen.now),
            )
    return Blocker(what=what, cause=f"{reason}: {message}" if message else reason)


def _crash(seen: Situation, fact: ContainerFact) -> str:
    """How it ended: in the words of its event, which has its last log lines, or from the fact alone."""
    start = f"container {fact.name}: ContainerDied: "
    for entry in reversed(seen.entries):
        if entry.kind == "event" and entry.what.startswith(start):
            return entry.what.removeprefix(start)
    text = f"it {ending(fact)}" + (f" ({fact.reason})" if fact.reason == OOM_KILLED else "")
    return f"{text}: {fact.message.strip()}" if fact.message else text


def _probing(seen: Situation, what: str, fact: ContainerFact) -> Iterator[Blocker]:
    """A running container whose startup or readiness probe is not content."""
    stories = seen.probes.get(fact.id, {})
    for kind in (Kind.STARTUP, Kind.READINESS):
        story = stories.get(kind)
        if story is not None and not story.state.ok:
            cause = probe_words(kind, story)
            yield Blocker(what=what, cause=cause, since=_since(seen, fact.started_at))
            return


def probe_words(kind: Kind, story: ProbeStory) -> str:
    """`Readiness probe failed 4 times in a row: HTTP probe failed with statuscode: 503`."""
    state = story.state
    if not story.measured:
        return f"{kind} probe has not been asked yet"
    if state.last is Outcome.SUCCESS and not story.text:
        return f"{kind} probe succeeded {state.run} of {story.thresholds.success} times"
    if state.last is Outcome.FAILURE:
        enough = story.thresholds.failure
        run = f"{state.run} of {enough} times" if state.run < enough else f"{state.run} times in a row"
        return f"{kind} probe failed {run}{f': {story.text}' if story.text else ''}"
    return f"{kind} probe could not be asked: {story.text}"


def _gates(seen: Situation) -> Iterator[Blocker]:
    conditions = {c.type: c for c in seen.pod.status.conditions}
    for gate in seen.pod.spec.readiness_gates:
        found = conditions.get(gate.condition_type)
        if found is None or found.status != "True":
            cause = "nobody has set it" if found is None else f"it is {found.status} {found.message}".rstrip()
            yield Blocker(what=f"readiness gate {gate.condition_type}", cause=cause)


def _resize(seen: Situation) -> Iterator[Blocker]:
    if seen.resize is not None:
        cause = f"{seen.resize.reason}: {seen.resize.message}"
        yield Blocker(what="resize of the pod", cause=cause, since=max(0.0, seen.now - seen.resize.since))


def _failed(seen: Situation, what: str, key: str) -> Blocker:
    failure = seen.failures[key]
    times = f" ({failure.count} times)" if failure.count > 1 else ""
    return Blocker(
        what=what,
        cause=f"failed{times}: {failure.message}",
        since=max(0.0, seen.now - failure.failed),
        until=max(0.0, failure.retry - seen.now),
    )


def _age(seen: Situation, key: str) -> float | None:
    began = seen.jobs.get(key)
    return None if began is None else max(0.0, seen.now - began)


def _since(seen: Situation, at: float) -> float | None:
    return max(0.0, seen.wall - at) if at else None
