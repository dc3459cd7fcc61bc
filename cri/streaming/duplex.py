"""A byte connection as SPDY needs it: the socket itself, or the inside of WebSocket messages.

Since Kubernetes 1.30 kubectl carries port-forward's SPDY bytes in WebSocket messages of the subprotocol
`SPDY/3.1+portforward.k8s.io` (KEP-4006).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Protocol

from cri.streaming import websocket
from cri.streaming.hangups import HangUps
from cri.streaming.session import ClientGone

TUNNEL = "SPDY/3.1+portforward.k8s.io"
_READ = 256 << 10


class Duplex(Protocol):
    """Bytes both ways."""

    async def read(self) -> bytes:
        """Some bytes; b"" at the end."""

    async def write(self, data: bytes) -> None:
        """Send; returns when there is room for more. Raises ClientGone."""

    async def gone(self) -> None:
        """Return when the peer has hung up, whether its last bytes have been read or not."""


class Plain:
    """The connection's own bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hang_ups: HangUps) -> None:
        self._reader = reader
        self._writer = writer
        self._hang_ups = hang_ups

    async def read(self) -> bytes:
        """Some bytes; b"" at the end."""
        try:
            return await self._reader.read(_READ)
        except ConnectionError:
            return b""

    async def write(self, data: bytes) -> None:
        """Send; returns when there is room for more."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError as exc:
            raise ClientGone from exc

    async def gone(self) -> None:
        """Return when the peer has hung up, whether its last bytes have been read or not."""
        fd = self._writer.get_extra_info("socket").fileno()
        if fd >= 0:
            await self._hang_ups.wait(fd)


class Tunnel:
    """Bytes in binary WebSocket messages on a connection whose handshake has been answered."""

    def __init__(self, inner: Duplex) -> None:
        self._inner = inner
        self._decoder = websocket.Decoder()
        self._ended = False

    async def read(self) -> bytes:
        """The content of the next messages; b"" at the end."""
        found = b""
        while not found and not self._ended:
            data = await self._inner.read()
            self._ended = not data
            try:
                for event in self._decoder.feed(data):
                    if isinstance(event, websocket.Message):
                        found += event.data
                    elif isinstance(event, websocket.Ping):
                        await self._inner.write(websocket.pong(event.data))
                    else:
                        self._ended = True
            except websocket.WebSocketError as exc:
                await self._inner.write(websocket.close(exc.code, str(exc)))
                self._ended = True
        return found

    async def write(self, data: bytes) -> None:
        """Send as one message; nothing for nothing."""
        if data:
            await self._inner.write(websocket.message(data))

    async def gone(self) -> None:
        """Return when the peer has hung up."""
        await self._inner.gone()

    async def close(self) -> None:
        """Say good-bye: a client takes an end without it for an error."""
        with suppress(ClientGone):
            await self._inner.write(websocket.close())
