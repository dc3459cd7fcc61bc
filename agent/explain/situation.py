"""Everything the agent knows of one pod at one moment, frozen, so that judging it needs no agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.api.structs import Pod, PodStatus
from agent.pods.actions import Failure, Stop
from agent.pods.facts import PodFacts
from agent.pods.manager import PodManager
from agent.pods.restart import Backoff
from agent.pods.status import Verdict
from agent.pods.status_resize import PendingResize
from agent.pods.timeline import Entry
from agent.pods.worker import PodWorker
from agent.probes.manager import ProbeManager, ProbeStory
from agent.probes.state import Kind
from host.clocks import Clock


@dataclass(frozen=True, kw_only=True)
class Situation:
    """One pod, as its worker sees it. `now` and all times of jobs, failures and exits are monotonic."""

    pod: Pod
    status: PodStatus
    now: float
    wall: float
    """The same moment in Unix seconds."""
    facts: PodFacts
    removed: bool = False
    """Whether its object or manifest is gone."""
    stop: Stop | None = None
    verdict: Verdict | None = None
    jobs: Mapping[str, float] = field(default_factory=dict)
    """Keys of the jobs under way → when they began."""
    failures: Mapping[str, Failure] = field(default_factory=dict)
    holds: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Container → reason and message why it does not run."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Container → how far its image's pull is."""
    resize: PendingResize | None = None
    """A wanted resize that the node cannot grant."""
    exits: Mapping[str, float] = field(default_factory=dict)
    backoffs: Mapping[str, Backoff] = field(default_factory=dict)
    hooking: frozenset[str] = frozenset()
    probes: Mapping[str, Mapping[Kind, ProbeStory]] = field(default_factory=dict)
    """Container id → its probes."""
    undelivered: str = ""
    """Why the API has not taken the last status."""
    entries: tuple[Entry, ...] = ()


def take(worker: PodWorker, *, manager: PodManager, probes: ProbeManager, clock: Clock) -> Situation:
    """The situation of a worker's pod, now."""
    memory, facts = worker.memory, manager.observer.of(worker.uid)
    return Situation(
        pod=worker.pod,
        status=memory.status,
        now=clock.monotonic(),
        wall=clock.now(),
        facts=facts,
        removed=worker.removed,
        stop=memory.stop,
        verdict=memory.verdict,
        jobs=worker.jobs,
        failures=dict(memory.failures),
        holds=dict(memory.holds),
        notes=dict(memory.notes),
        resize=memory.pending,
        exits=dict(memory.exits),
        backoffs=dict(memory.backoffs),
        hooking=frozenset(memory.hooking),
        probes={fact.id: probes.stories(fact.id) for fact in facts.containers},
        undelivered=manager.undelivered(worker),
        entries=manager.timelines.entries(worker.uid),
    )
