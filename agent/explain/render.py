"""Reports as text. Pure: the moment it is for is an argument."""

from __future__ import annotations

from collections.abc import Sequence

from agent.explain.documents import Blocker, Line, PodReport
from agent.explain.words import age, clock_time, duration

HEADER = ("NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "IP", "AGE", "WHY")
_WHY = 70


def why(pod: PodReport, *, now: float) -> str:
    """One pod: its state, what is in its way, its timeline."""
    parts = [_head(pod, now)]
    if pod.blockers:
        parts.append("in its way:\n" + "\n".join(_blocker(each) for each in pod.blockers))
    else:
        parts.append("nothing is in its way")
    if pod.undelivered:
        parts.append(f"the API server has not taken its last status: {pod.undelivered}")
    if pod.timeline:
        parts.append("timeline (UTC):\n" + "\n".join(_line(each) for each in pod.timeline))
    return "\n\n".join(parts)


def _head(pod: PodReport, now: float) -> str:
    words = [f"pod {pod.namespace}/{pod.name}: {pod.word}, {pod.ready} of {pod.containers} ready"]
    if pod.restarts:
        words.append(f"{pod.restarts} restart{'s' if pod.restarts > 1 else ''}")
    if pod.ip:
        words.append(pod.ip)
    if pod.created is not None:
        words.append(f"{duration(max(0.0, now - pod.created))} old")
    if pod.static:
        words.append("static")
    return ", ".join(words)


def _blocker(each: Blocker) -> str:
    text = f"  {shown(each.what)}: {shown(each.cause)}"
    notes = []
    if each.since is not None:
        notes.append(f"for {duration(each.since)}")
    if each.until is not None:
        notes.append(f"next try in {duration(each.until)}" if each.until else "next try now")
    return text + (f" ({', '.join(notes)})" if notes else "")


def _line(each: Line) -> str:
    took = duration(each.seconds) if each.seconds is not None else ""
    again = f" ({each.count} times)" if each.count > 1 else ""
    return f"  {clock_time(each.at)}  {took:>12}  {'!' if each.trouble else ' '} {shown(each.what)}{again}"


def pods(found: Sequence[PodReport], *, now: float) -> str:
    """A table of pods, with the first thing that is in the way of each."""
    rows = [HEADER, *(_row(pod, now) for pod in found)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(HEADER))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(pod: PodReport, now: float) -> tuple[str, ...]:
    first = next((f"{each.what}: {each.cause}" for each in pod.blockers), "")
    first = shown(first or (f"status not delivered: {pod.undelivered}" if pod.undelivered else ""))
    return (
        pod.namespace,
        pod.name,
        f"{pod.ready}/{pod.containers}",
        pod.word,
        str(pod.restarts),
        pod.ip or "-",
        age(now - pod.created) if pod.created is not None else "-",
        first if len(first) <= _WHY else first[: _WHY - 1] + "…",
    )


def shown(text: str) -> str:
    """Text of other programs, safe for a terminal and in one line."""
    return "".join(char if char.isprintable() else " " for char in text)
