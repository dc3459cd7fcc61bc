"""Recording core/v1 Events, as `kubectl describe` shows them, without ever holding up the caller.

Equal events (same object, reason, message) within ten minutes become one with a higher count, as kubelet's
are; many similar ones become one, and a flood is cut off (`agent.api.event_limits`). At most `QUEUE` events
wait; when the API is away the oldest are dropped and counted. Not a log: the log has its own line for each
event (`event ...`).

Source: k8s.io/client-go/tools/record/events_cache.go (correlation), k8s.io/api/core/v1 Event.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging

from agent.api import errors
from agent.api.client import ApiClient, PatchKind
from agent.api.event_limits import COMBINED, EventLimits
from agent.api.meta import ObjectMeta, ObjectReference
from agent.api.resources import EVENTS
from agent.api.structs import Event, EventSource
from agent.api.times import format_time
from host.clocks import Clock

log = logging.getLogger(__name__)
QUEUE = 1000
AGGREGATION_WINDOW = 600.0
"""Seconds during which an equal event only raises the count."""

MESSAGE_LIMIT = 1024
"""The API server refuses longer messages."""

Key = tuple[str, str, str, str, str]
_ANY = ""
"""Stands for the message in the key of events that are told as one."""


@dataclasses.dataclass
class _Series:
    message: str
    name: str
    namespace: str
    first: float
    last: float
    count: int
    sent: bool = False


def node_reference(name: str) -> ObjectReference:
    """Reference to a node; kubelet puts the name into `uid`, and `kubectl describe node` looks for that."""
    return ObjectReference(kind="Node", name=name, uid=name)


class EventRecorder:
    """`record()` queues and returns; `run()` writes until cancelled. Without a client: log only."""

    def __init__(
        self, client: ApiClient | None, *, host: str, clock: Clock, component: str = "kubelet"
    ) -> None:
        self._client = client
        self._clock = clock
        self._source = EventSource(component=component, host=host)
        self._queue: collections.deque[tuple[Key, ObjectReference, str]] = collections.deque()
        self._series: collections.OrderedDict[Key, _Series] = collections.OrderedDict()
        self._wake = asyncio.Event()
        self._limits = EventLimits()
        self.dropped = 0

    def record(self, ref: ObjectReference, *, type: str, reason: str, message: str) -> None:
        """Note an event: `type` "Normal" or "Warning", `reason` one CamelCase word, `message` for people."""
        message = message[:MESSAGE_LIMIT]
        subject = f"{ref.kind.lower()}/{ref.namespace}/{ref.name}".replace("//", "/")
        log.info("event object=%s type=%s reason=%s message=%r", subject, type, reason, message)
        if self._client is None:
            return
        owner, ticks = ref.uid or ref.name, self._clock.monotonic()
        together = self._limits.combined(f"{owner}{ref.field_path}", type, reason, message, now=ticks)
        if not self._limits.admitted(owner, now=ticks):
            return
        key = (owner, ref.field_path, type, reason, _ANY if together else message)
        if together:
            message = (COMBINED + message)[:MESSAGE_LIMIT]
        self._count(key, ref, message)
        if any(queued == key for queued, _, _ in self._queue):
            return
        self._queue.append((key, ref, type))
        if len(self._queue) > QUEUE:
            self._queue.popleft()
            self.dropped += 1
        self._wake.set()

    def _count(self, key: Key, ref: ObjectReference, message: str) -> None:
        now = self._clock.now()
        series = self._series.pop(key, None)
        if series is None or now - series.last > AGGREGATION_WINDOW:
            # The name is the object's and the time in hexadecimal nanoseconds, as client-go's.
            name = f"{ref.name}.{int(now * 1e9) + len(self._series) % 1000:x}"
            series = _Series(message, name, ref.namespace or "default", now, now, 0)
        series.count += 1
        series.last = now
        series.message = message
        self._series[key] = series
        while len(self._series) > QUEUE * 4:
            self._series.popitem(last=False)

    async def run(self) -> None:
        """Write queued events, oldest first, until cancelled. One that is refused is logged and skipped."""
        if self._client is None:
            return
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                key, ref, type_ = self._queue[0]
                try:
                    await self._send(key, ref, type_)
                except errors.Temporary as exc:
                    await self._clock.sleep(max(exc.delay, 5.0))
                    continue
                except errors.ApiError as exc:
                    log.warning("event refused object=%s/%s error=%s", ref.namespace, ref.name, exc)
                if self._queue and self._queue[0][0] == key:
                    self._queue.popleft()

    async def _send(self, key: Key, ref: ObjectReference, type_: str) -> None:
        series = self._series.get(key)
        client = self._client
        if series is None or client is None:
            return
        last = format_time(series.last)
        if series.sent:
            try:
                body = {"count": series.count, "lastTimestamp": last, "message": series.message}
                await client.patch(
                    EVENTS, series.name, body, namespace=series.namespace, kind=PatchKind.STRATEGIC
                )
                return
            except errors.NotFound:
                pass  # expired in the API (kept for an hour): start it again
        event = Event(
            metadata=ObjectMeta(name=series.name, namespace=series.namespace),
            involved_object=ref,
            reason=key[3],
            message=series.message,
            source=self._source,
            first_timestamp=format_time(series.first),
            last_timestamp=last,
            count=series.count,
            type=type_,
            reporting_component=self._source.component,
            reporting_instance=self._source.host,
        )
        await client.create(EVENTS, event)
        series.sent = True
