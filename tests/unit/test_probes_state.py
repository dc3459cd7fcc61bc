"""Thresholds: what a sequence of outcomes decides, and when."""

import pytest

from agent.probes.state import Kind, Outcome, Thresholds, initial, step

OUTCOMES = {"s": Outcome.SUCCESS, "f": Outcome.FAILURE, "?": Outcome.UNKNOWN}


def play(kind: Kind, outcomes: str, *, success: int = 1, failure: int = 3, known: bool | None = None) -> str:
    """The state after each outcome: `+` ok, `-` not ok, in brackets while undecided."""
    state = initial(kind, known=known)
    seen = ""
    for letter in outcomes:
        state = step(state, OUTCOMES[letter], Thresholds(success=success, failure=failure))
        sign = "+" if state.ok else "-"
        seen += sign if state.decided else f"({sign})"
    return seen


@pytest.mark.parametrize(
    ("kind", "outcomes", "success", "failure", "expected"),
    [
        (Kind.READINESS, "s", 1, 3, "+"),
        (Kind.READINESS, "f", 1, 3, "(-)"),
        (Kind.READINESS, "ss", 2, 3, "(-)+"),
        (Kind.READINESS, "sfss", 2, 3, "(-)(-)(-)+"),
        (Kind.READINESS, "sfff", 1, 3, "+++-"),
        (Kind.READINESS, "sffsfff", 1, 3, "++++++-"),
        (Kind.READINESS, "sff?f", 1, 3, "++++-"),
        (Kind.LIVENESS, "fff", 1, 3, "(+)(+)-"),
        (Kind.LIVENESS, "ffsff", 1, 3, "(+)(+)+++"),
        (Kind.LIVENESS, "f", 1, 1, "-"),
        (Kind.LIVENESS, "???", 1, 1, "(+)(+)(+)"),
        (Kind.STARTUP, "ffs", 1, 30, "(-)(-)+"),
        (Kind.STARTUP, "fff", 1, 3, "(-)(-)-"),
    ],
)
def test_outcomes_decide(kind: Kind, outcomes: str, success: int, failure: int, expected: str) -> None:
    assert play(kind, outcomes, success=success, failure=failure) == expected


def test_a_known_state_survives_until_outcomes_contradict_it() -> None:
    assert play(Kind.READINESS, "fff", known=True) == "++-"
    assert play(Kind.READINESS, "?s", known=False) == "-+"


def test_what_would_have_killed_is_measured_anew() -> None:
    assert play(Kind.STARTUP, "fff", known=False) == "(-)(-)-"
    assert play(Kind.LIVENESS, "fff", known=False) == "(+)(+)-"
