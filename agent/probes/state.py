"""Thresholds of one probe, as a pure state table.

A probe's *state* (`ok` or not) is what the rest of the node acts on; its *outcomes* are single measurements.
An outcome changes the state only after it has come `successThreshold` or `failureThreshold` times in a row
(Kubernetes API, core/v1 Probe). The kind decides what holds before the first decision:

    kind        before the first decision   meaning of a state change
    startup     not ok (container gated)    ok: readiness and liveness begin; not ok: the container is killed
    readiness   not ok (no traffic)         endpoint in or out of service
    liveness    ok                          not ok: the container is killed

`Outcome.UNKNOWN` (the probe itself could not run, for instance the runtime did not answer) changes nothing,
as in kubelet. No clock and no I/O in here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Kind(StrEnum):
    """Which of a container's three probes."""

    STARTUP = "Startup"
    READINESS = "Readiness"
    LIVENESS = "Liveness"


class Outcome(StrEnum):
    """What one measurement said."""

    SUCCESS = "success"
    FAILURE = "failure"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Thresholds:
    """How often in a row an outcome must come; both at least 1."""

    success: int = 1
    failure: int = 3


@dataclass(frozen=True)
class State:
    """One probe's memory.

    `decided` is False until a threshold was first reached; `run` counts equal outcomes in a row.
    """

    kind: Kind
    ok: bool
    decided: bool = False
    last: Outcome = Outcome.UNKNOWN
    run: int = 0


def initial(kind: Kind, *, known: bool | None = None) -> State:
    """The state before any measurement.

    Args:
        kind: which probe.
        known: what was decided before an agent restart, if anything. It stays until new outcomes say
            otherwise, so that a restart never flips a ready pod. "Not started" and "not live" are no such
            decisions: the container was to be killed for them and was not, so it is measured anew.
    """
    if known is not None and (known or kind is Kind.READINESS):
        return State(kind=kind, ok=known, decided=True)
    return State(kind=kind, ok=kind is Kind.LIVENESS)


def step(state: State, outcome: Outcome, thresholds: Thresholds) -> State:
    """The state after one more outcome; compare `ok` and `decided` with the old one to see a decision."""
    if outcome is Outcome.UNKNOWN:
        return state
    run = state.run + 1 if outcome is state.last else 1
    needed = thresholds.success if outcome is Outcome.SUCCESS else thresholds.failure
    if run < needed:
        return replace(state, last=outcome, run=run)
    return replace(state, last=outcome, run=run, ok=outcome is Outcome.SUCCESS, decided=True)
