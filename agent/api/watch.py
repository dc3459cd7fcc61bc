"""Following a collection in three layers, each small enough to read at a glance.

    watch_once       one connection: lines to events, until it ends; idle time-out armed by every event
    watch_from_list  list, LISTED mark, then watch on and on from the last resourceVersion; ends with 410
    watch_forever    never ends: jittered back-off after errors, list again after 410

and `Informer`, which keeps a dictionary of the newest objects from them. The mark LISTED separates "all that
exists" from "what changed", so objects that vanished while we were away are pruned only after a complete,
successful list: an error, or a failed list, is never taken for an empty one.

Source: Kubernetes API concepts, "Efficient detection of changes" (resourceVersion, bookmarks, 410 Gone).
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import logging
import random
from collections.abc import AsyncGenerator, Callable
from typing import Generic, TypeVar

import msgspec

from agent.api import errors
from agent.api.client import ApiClient
from agent.api.meta import Object, Status, Struct
from agent.api.resources import Resource

log = logging.getLogger(__name__)
T = TypeVar("T", bound=Object)

SERVER_TIMEOUT = 480
"""Seconds after which we ask the server to end a watch; jittered up to twice that."""

IDLE_TIMEOUT = 150.0
"""Seconds without any event or bookmark (sent about every minute) after which a connection counts as dead."""

FIRST_DELAY, LAST_DELAY = 0.25, 10.0
"""Bounds in seconds of the back-off between attempts."""


class Change(enum.Enum):
    """What happened to an object. EXISTING is one item of a list; LISTED, without object, says that the list
    is
    complete."""

    EXISTING = "EXISTING"
    LISTED = "LISTED"
    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


@dataclasses.dataclass(frozen=True)
class WatchEvent(Generic[T]):
    """One event. `obj` is None for LISTED and BOOKMARK; for DELETED it is the last state."""

    change: Change
    obj: T | None
    resource_version: str


class _Line(Struct, frozen=True, kw_only=True):
    type: str = ""
    object: msgspec.Raw = msgspec.Raw(b"{}")


@dataclasses.dataclass(frozen=True)
class Selection(Generic[T]):
    """What to watch: a resource, perhaps in one namespace, perhaps only what the selectors match."""

    resource: Resource[T]
    namespace: str = ""
    label_selector: str = ""
    field_selector: str = ""

    @property
    def path(self) -> str:
        """The URL path of the collection."""
        return self.resource.path(namespace=self.namespace)

    def query(self, resource_version: str, timeout: int) -> dict[str, str]:
        """Query parameters of a watch that the server ends after `timeout` seconds."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout),
            "labelSelector": self.label_selector,
            "fieldSelector": self.field_selector,
        }
        return {key: value for key, value in query.items() if value}


class LineReader(Generic[T]):
    """Watch lines to events, without I/O. Raises `Gone` and other `ApiError`s for ERROR lines."""

    def __init__(self, selection: Selection[T]) -> None:
        self._what = f"watch {selection.path}"
        self._lines = msgspec.json.Decoder(_Line)
        self._objects = msgspec.json.Decoder(selection.resource.type)
        self._marks = msgspec.json.Decoder(Object)

    def read(self, line: bytes) -> WatchEvent[T]:
        """The event of one line. Raises `Temporary` for a line that is no event (truncated, for instance)."""
        try:
            envelope = self._lines.decode(line)
            if envelope.type == "ERROR":
                status = msgspec.json.decode(envelope.object, type=Status)
                raise errors.from_status(status.code or 500, status, what=self._what)
            if envelope.type == "BOOKMARK":
                # Only its resourceVersion is filled in; required lists of the kind are null.
                mark = self._marks.decode(envelope.object)
                return WatchEvent(Change.BOOKMARK, None, mark.metadata.resource_version)
            obj = self._objects.decode(envelope.object)
            return WatchEvent(Change(envelope.type), obj, obj.metadata.resource_version)
        except (msgspec.MsgspecError, ValueError) as exc:
            raise errors.Temporary(f"{self._what}: unreadable event: {exc}") from exc


async def watch_once(
    client: ApiClient, selection: Selection[T], resource_version: str
) -> AsyncGenerator[WatchEvent[T], None]:
    """One connection. Ends normally when the server ends it; raises `ApiError`."""
    timeout = int(SERVER_TIMEOUT * (1 + random.random()))  # noqa: S311 - spreads load, not a secret
    reader = LineReader(selection)
    query = selection.query(resource_version, timeout)
    lines = client.transport.stream(selection.path, query=query, idle_timeout=IDLE_TIMEOUT)
    async for line in lines:
        if line.strip():
            yield reader.read(line)


async def watch_from_list(client: ApiClient, selection: Selection[T]) -> AsyncGenerator[WatchEvent[T], None]:
    """Everything that exists as EXISTING, LISTED, then changes without end. Raises `ApiError`, `Gone` when
    the
    server no longer knows our resourceVersion."""
    listed = await client.list(
        selection.resource,
        namespace=selection.namespace,
        label_selector=selection.label_selector,
        field_selector=selection.field_selector,
    )
    for obj in listed.items:
        yield WatchEvent(Change.EXISTING, obj, obj.metadata.resource_version)
    yield WatchEvent(Change.LISTED, None, listed.resource_version)
    version = listed.resource_version
    while True:
        try:
            async for event in watch_once(client, selection, version):
                version = event.resource_version
                yield event
        except errors.Unreachable as exc:
            # The connection broke, the version did not: try once to go on from it before giving up.
            log.info("watch interrupted path=%s error=%s", selection.path, exc)
            await client.clock.sleep(FIRST_DELAY * (1 + random.random()))  # noqa: S311
            if not await _answers(client):
                raise


async def _answers(client: ApiClient) -> bool:
    """Whether the server says anything at all; an unreachable one is left to the outer layer's back-off."""
    try:
        await client.transport.request("GET", "/livez", timeout=5.0)
    except errors.Unreachable:
        return False
    except errors.ApiError:
        return True
    return True


def backoff(attempt: int) -> float:
    """Seconds to wait after the n-th failure in a row (from 0): exponential, with half of it random."""
    ceiling = min(LAST_DELAY, FIRST_DELAY * 2 ** min(attempt, 16))
    return ceiling * (0.5 + random.random() / 2)  # noqa: S311


async def watch_forever(client: ApiClient, selection: Selection[T]) -> AsyncGenerator[WatchEvent[T], None]:
    """Like `watch_from_list`, and again after every failure. Never raises `ApiError`, never ends."""
    attempt = 0
    while True:
        delay = 0.0
        began = client.clock.monotonic()
        try:
            async for event in watch_from_list(client, selection):
                yield event
        except errors.Gone:
            log.info("watch expired, listing again path=%s", selection.path)
        except errors.ApiError as exc:
            delay = getattr(exc, "delay", 0.0)
            log.log(
                errors.log_level(exc),
                "watch failed path=%s attempt=%d error=%s",
                selection.path,
                attempt + 1,
                exc,
            )
        if client.clock.monotonic() - began > LAST_DELAY:
            attempt = 0  # it worked for a while, so this is a new trouble
        await client.clock.sleep(max(delay, backoff(attempt)))
        attempt += 1


class Informer(Generic[T]):
    """A live copy of a collection, keyed "namespace/name" ("name" for cluster-wide kinds).

    `on_change(old, new)` is called for each difference, on the event loop, and must not block: `old` is None
    for a new object, `new` is None for a deleted one. Objects found unchanged after a new list are not
    reported. `synced` is set after the first complete list and stays set. `run()` follows until cancelled.
    """

    def __init__(
        self,
        client: ApiClient,
        selection: Selection[T],
        on_change: Callable[[T | None, T | None], None] | None = None,
        *,
        on_synced: Callable[[], None] | None = None,
    ) -> None:
        self.store: dict[str, T] = {}
        self.synced = asyncio.Event()
        self._client = client
        self._selection = selection
        self._handlers = [on_change] if on_change else []
        self._on_synced = on_synced

    def subscribe(self, on_change: Callable[[T | None, T | None], None]) -> None:
        """Add a handler; it is called at once for everything already known."""
        self._handlers.append(on_change)
        for obj in list(self.store.values()):
            on_change(None, obj)

    async def run(self) -> None:
        """Follow the collection until cancelled."""
        listed: set[str] = set()
        async for event in watch_forever(self._client, self._selection):
            if event.change is Change.LISTED:
                self._prune(listed)
                listed = set()
            elif event.obj is not None:
                key = key_of(event.obj)
                if event.change is Change.EXISTING:
                    listed.add(key)
                self._apply(key, None if event.change is Change.DELETED else event.obj)

    def _prune(self, listed: set[str]) -> None:
        for key in [key for key in self.store if key not in listed]:
            self._apply(key, None)
        if not self.synced.is_set():
            self.synced.set()
            if self._on_synced is not None:
                self._on_synced()

    def _apply(self, key: str, new: T | None) -> None:
        old = self.store.get(key)
        if new is None:
            self.store.pop(key, None)
        else:
            self.store[key] = new
        if old is new or (old and new and old.metadata.resource_version == new.metadata.resource_version):
            return
        for handler in self._handlers:
            handler(old, new)


def key_of(obj: Object) -> str:
    """The informer's key of an object: "namespace/name", or "name"."""
    meta = obj.metadata
    return f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name
