"""Port-forward over SPDY: for each connection the client opens a data and an error stream of one request id.

The target is always the pod's own loopback: the socket is made inside the pod's network namespace, so nothing
else on the node can be reached. What the target sends is passed on with back-pressure; what the client sends
is queued for a target up to a limit, beyond which that connection is given up (one slow target must not stop
the others, and SPDY as clients speak it cannot hold back a single stream).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from cri.streaming import spdy
from cri.streaming.duplex import Duplex
from cri.streaming.session import ClientGone

PROTOCOLS = ("portforward.k8s.io",)
_CONNECT_SECONDS = 10.0
_QUEUE_BYTES = 4 << 20
_READ = 32 << 10

Opener = Callable[[int], socket.socket]
"""Makes a TCP socket (AF_INET or AF_INET6, as asked) inside the pod's network namespace."""


@dataclass
class _Pair:
    """One forwarded connection."""

    port: int
    data: int = 0
    error: int = 0
    incoming: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    queued: int = 0
    task: asyncio.Task[None] | None = None


class PortForward:
    """All forwarded connections of one client connection."""

    def __init__(self, duplex: Duplex, open_socket: Opener) -> None:
        """Nothing is read or sent yet."""
        self._duplex = duplex
        self._open_socket = open_socket
        self._spdy = spdy.Connection()
        self._pairs: dict[str, _Pair] = {}
        self._by_data: dict[int, _Pair] = {}

    async def run(self) -> None:
        """Forward until the client goes away; no task is left then."""
        try:
            while data := await self._duplex.read():
                for event in self._spdy.feed(data):
                    await self._handle(event)
        except (spdy.SpdyError, ClientGone):
            return
        finally:
            tasks = [pair.task for pair in self._by_data.values() if pair.task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _handle(self, event: spdy.Event) -> None:
        match event:
            case spdy.Pinged(answer):
                await self._duplex.write(answer)
            case spdy.StreamOpened(stream, headers, _):
                await self._opened(stream, dict(headers))
            case spdy.StreamData(stream, data, ended):
                await self._received(stream, data, ended)
            case spdy.StreamReset(stream):
                pair = self._by_data.get(stream)
                if pair is not None and pair.task is not None:
                    pair.task.cancel()

    async def _opened(self, stream: int, headers: dict[str, str]) -> None:
        kind, text = headers.get("streamtype", ""), headers.get("port", "")
        port = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
        if kind not in ("data", "error") or not 1 <= port <= 65535:
            await self._duplex.write(self._spdy.reset(stream, refused=True))
            return
        await self._duplex.write(self._spdy.accept(stream))
        # Clients older than request ids open error and data right after each other: 1 and 3, 5 and 7, …
        request = headers.get("requestid") or f"stream-{stream if kind == 'error' else stream - 2}"
        pair = self._pairs.setdefault(request, _Pair(port))
        if kind == "data":
            pair.data = stream
            self._by_data[stream] = pair
        else:
            pair.error = stream
        if pair.data and pair.error:
            del self._pairs[request]
            pair.task = asyncio.create_task(self._forward(pair))

    async def _received(self, stream: int, data: bytes, ended: bool) -> None:
        pair = self._by_data.get(stream)
        if pair is None:
            return
        if pair.queued + len(data) > _QUEUE_BYTES:
            if pair.task is not None:
                pair.task.cancel()
            return
        pair.queued += len(data)
        if data:
            pair.incoming.put_nowait(data)
        if ended:
            pair.incoming.put_nowait(None)

    async def _forward(self, pair: _Pair) -> None:
        """Connect, copy both ways, close; a failure is told on the error stream."""
        try:
            reader, writer = await self._connect(pair.port)
        except OSError as exc:
            reason = os.strerror(exc.errno).lower() if exc.errno else "no answer in time"
            words = f"error forwarding port {pair.port}: {reason}"
            with suppress(ClientGone):
                await self._duplex.write(self._spdy.send(pair.error, words.encode(), end=True))
                await self._duplex.write(self._spdy.reset(pair.data))
            self._by_data.pop(pair.data, None)
            return
        sender = asyncio.create_task(_send(pair, writer))
        try:
            while piece := await reader.read(_READ):
                await self._duplex.write(self._spdy.send(pair.data, piece))
            await self._close(pair)
        except (ClientGone, ConnectionError):
            with suppress(ClientGone):
                await self._close(pair)
        finally:
            sender.cancel()
            writer.transport.abort()
            self._by_data.pop(pair.data, None)

    async def _close(self, pair: _Pair) -> None:
        await self._duplex.write(self._spdy.send(pair.error, b"", end=True))
        await self._duplex.write(self._spdy.send(pair.data, b"", end=True))

    async def _connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the pod's loopback, IPv4 first.

        Raises:
            OSError: nobody listens, or it takes too long.
        """
        try:
            return await self._connect_to(socket.AF_INET, "127.0.0.1", port)
        except ConnectionRefusedError as first:
            try:
                return await self._connect_to(socket.AF_INET6, "::1", port)
            except OSError:
                raise first from None

    async def _connect_to(
        self, family: int, host: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = await asyncio.to_thread(self._open_socket, family)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(_CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, (host, port))
        except BaseException:
            sock.close()
            raise
        return await asyncio.open_connection(sock=sock)


async def _send(pair: _Pair, writer: asyncio.StreamWriter) -> None:
    """What the client sends, to the target; its end closes our direction only."""
    with suppress(ConnectionError):
        while (data := await pair.incoming.get()) is not None:
            writer.write(data)
            await writer.drain()
            pair.queued -= len(data)
        writer.write_eof()
