"""From a situation to the document that the socket carries: what it is, what is in its way, what happened."""

from __future__ import annotations

from collections.abc import Iterator

from agent.api.structs import ContainerStatus, PodStatus
from agent.api.times import parse_time
from agent.explain.blockers import JOBS, TERMINAL, blockers
from agent.explain.documents import Line, PodReport
from agent.explain.situation import Situation
from agent.pods import spec
from agent.pods.facts import ContainerFact, State
from agent.pods.last_words import ending
from agent.pods.timeline import Entry

_TOLD_BY_JOBS = ("Pulling", "Pulled", "Created", "Started", "Killing")
"""Events that say what the jobs say with their durations."""
_ROUTINE = ("ContainerCreating", "PodInitializing")


def report(seen: Situation, *, timeline: bool = True) -> PodReport:
    """The document of a situation; without its timeline for lists."""
    meta, found = seen.pod.metadata, seen.status.container_statuses
    every = (*seen.status.init_container_statuses, *found)
    return PodReport(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        word=status_word(seen),
        ready=sum(c.ready for c in found),
        containers=len(seen.pod.spec.containers),
        restarts=sum(c.restart_count for c in every),
        ip=seen.status.pod_ip or "",
        created=parse_time(meta.creation_timestamp),
        static=spec.is_static(seen.pod),
        undelivered=seen.undelivered,
        blockers=blockers(seen),
        timeline=tuple(lines(seen)) if timeline else (),
    )


def status_word(seen: Situation) -> str:
    """The pod's state in a word.

    Source: printPod of k8s.io/kubernetes/pkg/printers/internalversion/printers.go.
    """
    status = seen.status
    if seen.removed or seen.pod.metadata.deletion_timestamp is not None:
        return "Terminating"
    if status.reason:
        return status.reason
    return _init_word(seen, status) or _app_word(status) or status.phase or "Pending"


def _init_word(seen: Situation, status: PodStatus) -> str:
    if status.phase != "Pending":
        return ""
    known = {c.name: c for c in status.init_container_statuses}
    for number, container in enumerate(seen.pod.spec.init_containers):
        found = known.get(container.name)
        done = found is not None and (found.started if spec.is_sidecar(container) else _exit_code(found) == 0)
        if not done:
            reason = _reason(found) if found is not None else ""
            return f"Init:{reason}" if reason else f"Init:{number}/{len(seen.pod.spec.init_containers)}"
    return ""


def _app_word(status: PodStatus) -> str:
    if status.phase in TERMINAL:
        words = [_reason(c) for c in status.container_statuses if _exit_code(c)]
        return next(filter(None, words), "Completed" if status.phase == "Succeeded" else "Error")
    words = [
        _reason(c) or (c.state.waiting.reason if c.state.waiting else "") for c in status.container_statuses
    ]
    return next(filter(None, words), "")


def _exit_code(found: ContainerStatus) -> int | None:
    return found.state.terminated.exit_code if found.state.terminated is not None else None


def _reason(found: ContainerStatus) -> str:
    """Why a container waits or how it has ended, where that is worth a word."""
    if found.state.waiting is not None and found.state.waiting.reason not in _ROUTINE:
        return found.state.waiting.reason
    return found.state.terminated.reason if found.state.terminated is not None else ""


# --- the timeline -----------------------------------------------------------------------------------------


def lines(seen: Situation) -> list[Line]:
    """What happened, oldest first: the API's dates, the runtime's facts, and what this agent noted."""
    entries = [entry for entry in seen.entries if not _told_otherwise(entry)]
    first = entries[0].at if entries else seen.wall
    told = [*_dates(seen), *(line for fact in seen.facts.containers for line in _past(fact, before=first))]
    told += [
        Line(at=e.at, what=words(e), seconds=e.seconds, trouble=e.trouble, count=e.count) for e in entries
    ]
    return sorted(told, key=lambda line: line.at)


def _told_otherwise(entry: Entry) -> bool:
    """Whether a job says the same, or a probe's decision repeats the measurement before it."""
    return entry.kind == "event" and any(f"{word}: " in entry.what for word in _TOLD_BY_JOBS)


def _dates(seen: Situation) -> Iterator[Line]:
    created = parse_time(seen.pod.metadata.creation_timestamp)
    if created is not None:
        yield Line(at=created, what="created in the API")
    for condition in seen.pod.status.conditions:
        bound = parse_time(condition.last_transition_time)
        if condition.type == "PodScheduled" and condition.status == "True" and bound is not None:
            yield Line(at=bound, what="assigned to this node")
    deleted = parse_time(seen.pod.metadata.deletion_timestamp)
    if deleted is not None:
        grace = seen.pod.metadata.deletion_grace_period_seconds or 0
        yield Line(at=deleted - grace, what=f"deletion asked for, grace {grace} s")


def _past(fact: ContainerFact, *, before: float) -> Iterator[Line]:
    """What the runtime remembers of a container from before this agent began to look."""
    run = f" (run {fact.restart_count + 1})" if fact.restart_count else ""
    if 0 < fact.started_at < before:
        yield Line(at=fact.started_at, what=f"container {fact.name} started{run}")
    if fact.state is State.EXITED and (0 < fact.finished_at < before or fact.exit_code == 0):
        yield Line(
            at=fact.finished_at,
            what=f"container {fact.name} {ending(fact)}{run}",
            trouble=fact.exit_code != 0,
        )


_DONE = {
    "volumes": "volumes mounted",
    "sandbox": "sandbox made, network ready",
    "pull": "image there",
    "start": "started",
    "kill": "stopped",
    "stop": "sandbox stopped, network gone",
    "remove": "removed what had ended",
    "teardown": "volumes unmounted",
    "cgroup": "cgroup removed",
}


def words(entry: Entry) -> str:
    """An entry for people: a job's key becomes words."""
    if entry.kind != "job":
        return entry.what
    job, _, rest = entry.what.partition(":")
    container, _, image = rest.partition(":")
    about = f"container {container}: " if job in ("pull", "start") else ""
    what = _DONE.get(job, entry.what) + (f", {image}" if job == "pull" else "")
    if entry.failure:
        return f"{about}{JOBS.get(job, entry.what)} failed: {entry.failure}"
    return about + what
