"""Time as an argument: the machine's clock, and one that tests turn by hand.

Durations, back-offs and deadlines use `monotonic`; only what is written down for people or for the API uses
`now`, because the wall clock may jump by days and must not restart anything.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """What a component may ask of time."""

    def monotonic(self) -> float:
        """Seconds since some fixed point; never goes back."""

    def now(self) -> float:
        """Seconds since 1970-01-01 UTC."""

    async def sleep(self, seconds: float) -> None:
        """Return after that many seconds (at once when not positive)."""


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class FakeClock:
    """A clock that stands still until `advance` is awaited; sleepers wake in order of their time."""

    def __init__(self, *, now: float = 1_700_000_000.0) -> None:
        self._start = now
        self._elapsed = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def monotonic(self) -> float:
        return self._elapsed

    def now(self) -> float:
        return self._start + self._elapsed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Let that much time pass, waking every sleeper on the way and letting it run."""
        end = self._elapsed + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            self._elapsed, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)
            await settle()
        self._elapsed = end


async def sleep_unless(clock: Clock, event: asyncio.Event, seconds: float) -> None:
    """Return after that many seconds of `clock`, or as soon as the event is set."""
    waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(clock.sleep(seconds))]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def settle(rounds: int = 20) -> None:
    """Let every task that is ready run until it waits again (bounded number of loop rounds)."""
    for _ in range(rounds):
        await asyncio.sleep(0)
