"""What happened to each pod on this node, and how long each step took: a bounded record in memory.

Written by the workers as they go, read by `agent.explain`. Not a log and not on disk: after a restart of the
agent the runtime's facts still tell when containers were made, started and ended.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass, replace

from host.clocks import Clock

FIRST, LAST = 40, 160
"""Entries kept of a pod: how it began, and what it did lately."""
PODS = 500
"""Pods remembered; the one that was quiet longest is forgotten first."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing that happened.

    Attributes:
        at: when it began, Unix seconds.
        kind: "job" (a step of the worker), "event", or "probe" (a decision).
        what: a job's key, or words.
        seconds: how long it took; None for a moment.
        trouble: whether it is bad news.
        failure: why a job failed.
        count: how often the same was told in a row.
    """

    at: float
    kind: str
    what: str
    seconds: float | None = None
    trouble: bool = False
    failure: str = ""
    count: int = 1


class Timelines:
    """The record of all pods of a node."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pods: collections.OrderedDict[str, list[Entry]] = collections.OrderedDict()

    def note(self, uid: str, kind: str, what: str, *, trouble: bool = False) -> None:
        """Something happened now; the same again right after it only counts."""
        entries = self._of(uid)
        if entries and (entries[-1].kind, entries[-1].what) == (kind, what):
            entries[-1] = replace(entries[-1], count=entries[-1].count + 1)
            return
        self._append(entries, Entry(at=self._clock.now(), kind=kind, what=what, trouble=trouble))

    def span(self, uid: str, key: str, *, began: float, failure: str = "") -> None:
        """A job has ended that began at that monotonic time."""
        seconds = self._clock.monotonic() - began
        entry = Entry(
            at=self._clock.now() - seconds,
            kind="job",
            what=key,
            seconds=seconds,
            trouble=bool(failure),
            failure=failure,
        )
        self._append(self._of(uid), entry)

    def entries(self, uid: str) -> tuple[Entry, ...]:
        """What is remembered of a pod, oldest first."""
        return tuple(sorted(self._pods.get(uid, ()), key=lambda entry: entry.at))

    def _of(self, uid: str) -> list[Entry]:
        entries = self._pods.pop(uid, [])
        self._pods[uid] = entries
        while len(self._pods) > PODS:
            self._pods.popitem(last=False)
        return entries

    @staticmethod
    def _append(entries: list[Entry], entry: Entry) -> None:
        entries.append(entry)
        if len(entries) > FIRST + LAST:
            del entries[FIRST]
