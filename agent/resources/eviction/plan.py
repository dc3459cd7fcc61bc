"""What a look at the signals means: pressures to report, and the threshold to act on. Pure.

A threshold that was acted on stays met until its minimum reclaim is free as well; a soft one has to be met
for its grace period first; a pressure, once raised, is reported until it was absent for the transition
period, so that a node does not swing between the two.

Source: k8s.io/kubernetes/pkg/kubelet/eviction/eviction_manager.go, synchronize (v1.37).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent.resources.eviction.signals import (
    ALLOCATABLE_MEMORY,
    CONDITIONS,
    MEMORY,
    Observation,
    Threshold,
)

CALM_PAUSE, TENSE_PAUSE = 10.0, 1.0
"""Seconds between two looks, far from all thresholds and near one. kubelet always waits 10."""
NEAR = 2
"""A signal is near its threshold when less than this many times the threshold is left."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What one look leaves to the next. Times are monotonic seconds."""

    first_met: Mapping[Threshold, float] = field(default_factory=dict)
    last_raised: Mapping[str, float] = field(default_factory=dict)
    """Condition → when a threshold last raised it."""
    said: Mapping[str, str] = field(default_factory=dict)
    """Condition → the arithmetic when it was raised; it stays, or every look would be news for the API."""
    acted_on: tuple[Threshold, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a look says."""

    memory: Memory
    due: tuple[Threshold, ...] = ()
    """Thresholds that something has to be done about now, the most urgent first."""

    @property
    def pressures(self) -> Mapping[str, str]:
        """Node conditions that are True, with their messages."""
        return self.memory.said


def look(
    before: Memory,
    thresholds: Sequence[Threshold],
    seen: Mapping[str, Observation],
    *,
    now: float,
    transition: float,
) -> Outlook:
    """Judge one set of observations.

    Args:
        before: what the look before left; `Memory()` at first.
        now: monotonic seconds.
        transition: evictionPressureTransitionPeriod, in seconds.
    """
    met = [t for t in thresholds if t.met(seen)]
    met += [t for t in before.acted_on if t not in met and t.met(seen, reclaim=True)]
    first = {t: before.first_met.get(t, now) for t in met}
    raised = {CONDITIONS[t.signal]: now for t in met}
    last = {**before.last_raised, **raised}
    last = {kind: at for kind, at in last.items() if kind in raised or now - at < transition}
    said = {kind: before.said.get(kind) or arithmetic(kind, met, seen) for kind in last}
    due = tuple(sorted((t for t in met if now - first[t] >= t.grace), key=_urgency))
    memory = Memory(first_met=first, last_raised=last, said=said, acted_on=due)
    return Outlook(memory=memory, due=due)


def _urgency(threshold: Threshold) -> bool:
    """Memory comes before everything else: the kernel would otherwise choose the victim."""
    return threshold.signal not in (MEMORY, ALLOCATABLE_MEMORY)


def arithmetic(condition: str, met: Sequence[Threshold], seen: Mapping[str, Observation]) -> str:
    """The figures behind a pressure: "memory.available 52428800 is below 104857600 (100Mi)"."""
    texts = []
    for threshold in met:
        if CONDITIONS[threshold.signal] == condition:
            found = seen[threshold.signal]
            limit = threshold.limit(found)
            texts.append(f"{threshold.signal} {found.available} is below {limit} ({threshold.value.text})")
    return "; ".join(dict.fromkeys(texts))


def settled(thresholds: Sequence[Threshold], seen: Mapping[str, Observation]) -> bool:
    """Whether reclaiming was enough: no threshold is met, minimum reclaim included."""
    return not any(t.met(seen, reclaim=True) for t in thresholds)


def pause(
    thresholds: Sequence[Threshold], seen: Mapping[str, Observation], *, pressed: bool = False
) -> float:
    """Seconds until the next look: sooner when something is close to its threshold, or while `pressed`, so
    that a pressure which has passed is taken back in time."""
    if pressed:
        return TENSE_PAUSE
    for threshold in thresholds:
        found = seen.get(threshold.signal)
        if found is not None and found.available < NEAR * threshold.limit(found, reclaim=True):
            return TENSE_PAUSE
    return CALM_PAUSE
