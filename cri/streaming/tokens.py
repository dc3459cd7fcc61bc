"""The tokens in stream addresses: who knows one may open that stream, once, soon.

A token is 256 random bits, is gone after its first use or after its time, and at most a fixed number exist,
so that a caller who never dials cannot fill the memory. The request a token stands for was authorised when
the token was made; the stream itself is not authorised again.
"""

from __future__ import annotations

import secrets
from typing import Any

from host.clocks import Clock

LIFETIME = 60.0
LIMIT = 1000


class TooManyStreams(Exception):
    """As many tokens wait for their stream as may."""


class Tokens:
    """Requests waiting for somebody to dial their address."""

    def __init__(self, clock: Clock, *, lifetime: float = LIFETIME, limit: int = LIMIT) -> None:
        """Describe a cache.

        Args:
            clock: only `monotonic` is used.
            lifetime: seconds a token is good for.
            limit: how many may wait.
        """
        self._clock = clock
        self._lifetime = lifetime
        self._limit = limit
        self._waiting: dict[str, tuple[float, Any]] = {}  # insertion order is expiry order

    def insert(self, request: Any) -> str:
        """A new token for a request.

        Raises:
            TooManyStreams: the limit is reached.
        """
        self._expire()
        if len(self._waiting) >= self._limit:
            raise TooManyStreams(f"{self._limit} streams wait to be opened; try again in a minute")
        token = secrets.token_urlsafe(32)
        self._waiting[token] = (self._clock.monotonic() + self._lifetime, request)
        return token

    def consume(self, token: str) -> Any | None:
        """The request of a token, which is used up by this; None when unknown, used or expired.

        The lookup is by hash, whose timing says nothing useful about 256 random bits.
        """
        self._expire()
        found = self._waiting.pop(token, None)
        return found[1] if found else None

    def _expire(self) -> None:
        now = self._clock.monotonic()
        while self._waiting:
            token, (deadline, _) = next(iter(self._waiting.items()))
            if deadline > now:
                return
            del self._waiting[token]
