"""How many events one object may cause: similar ones are told as one, and a flood is cut off. No I/O.

Two rules of client-go, with its figures, so that a crash loop or a failing probe cannot fill the API:

    similar   after `SIMILAR` different messages of one object, type and reason within ten minutes, the text
              becomes "(combined from similar events): ..." and they count as one
    flood     an object has `BURST` events, and gains one more every five minutes

Source: k8s.io/client-go/tools/record/events_cache.go (EventAggregator, EventSourceObjectSpamFilter).
"""

from __future__ import annotations

import collections
import dataclasses

SIMILAR = 10
WINDOW = 600.0
"""Seconds after which messages that were not repeated are forgotten."""
BURST = 25
REFILL = 300.0
"""Seconds until an object may cause one event more."""
OBJECTS = 4096
"""Objects remembered; the one that was quiet longest is forgotten first."""
COMBINED = "(combined from similar events): "


@dataclasses.dataclass
class _Group:
    """Different messages of one object, type and reason."""

    last: float
    messages: set[str]


@dataclasses.dataclass
class _Bucket:
    tokens: float
    filled: float


class EventLimits:
    """Both rules for all objects of a node. Times are seconds that never go back."""

    def __init__(self) -> None:
        self._groups: collections.OrderedDict[tuple[str, str, str], _Group] = collections.OrderedDict()
        self._buckets: collections.OrderedDict[str, _Bucket] = collections.OrderedDict()
        self.dropped = 0

    def combined(self, subject: str, type: str, reason: str, message: str, *, now: float) -> bool:
        """Whether the event is to be told as one with others that are similar.

        Args:
            subject: what the event is about, for instance a pod's uid and a field path.
        """
        key = (subject, type, reason)
        group = self._groups.pop(key, None)
        if group is None or now - group.last > WINDOW:
            group = _Group(now, set())
        self._groups[key] = group
        while len(self._groups) > OBJECTS:
            self._groups.popitem(last=False)
        group.last = now
        group.messages.add(message)
        if len(group.messages) < SIMILAR:
            return False
        group.messages.pop()
        return True

    def admitted(self, owner: str, *, now: float) -> bool:
        """Whether the object may cause one more event now; a refused one is counted in `dropped`."""
        bucket = self._buckets.pop(owner, None) or _Bucket(float(BURST), now)
        self._buckets[owner] = bucket
        while len(self._buckets) > OBJECTS:
            self._buckets.popitem(last=False)
        bucket.tokens = min(float(BURST), bucket.tokens + (now - bucket.filled) / REFILL)
        bucket.filled = now
        if bucket.tokens < 1.0:
            self.dropped += 1
            return False
        bucket.tokens -= 1.0
        return True
