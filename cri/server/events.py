"""Container events to every GetContainerEvents caller (KEP-3386, evented PLEG).

A slow reader must not grow the daemon: a subscriber whose queue is full is cut off, and the kubelet then
lists everything again, as it does after any broken event stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

_QUEUE_LENGTH = 4096


class EventBroker:
    """Copies each event to all subscribers. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        """No subscribers."""
        self._queues: set[asyncio.Queue[Any]] = set()

    @property
    def listening(self) -> bool:
        """Whether anybody would get an event (rendering one is not free)."""
        return bool(self._queues)

    def publish(self, event: Any) -> None:
        """Hand an event to every subscriber; one that is too far behind is cut off."""
        for queue in list(self._queues):
            if queue.qsize() >= _QUEUE_LENGTH:
                self._queues.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    def close(self) -> None:
        """End every subscription."""
        for queue in self._queues:
            queue.put_nowait(None)
        self._queues.clear()

    def subscribe(self) -> AsyncIterator[Any]:
        """Events from this call on (not from the first read on), until cut off or closed."""
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._queues.add(queue)
        return self._drain(queue)

    async def _drain(self, queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._queues.discard(queue)
