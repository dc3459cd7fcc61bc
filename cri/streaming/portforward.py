"""Port-forward over SPDY: for each connection the client opens a data and an error stream of one request id.

Nothing is ever written on an error stream: kubectl closes the whole forwarding when it reads a word there
(client-go, tools/portforward, handleConnection), and a target that refuses must end its own connection only.
The client learns of it by the reset of the data stream, the operator from our log.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from cri.streaming import spdy
from cri.streaming.duplex import Duplex
from cri.streaming.forwarding import Forward, Opener, PodGone
from cri.streaming.session import ClientGone

log = logging.getLogger(__name__)

PROTOCOLS = ("portforward.k8s.io",)


@dataclass
class _Pair:
    """The two streams of one forwarded connection."""

    data: int = 0
    error: int = 0
    port: int = 0
    forward: Forward | None = None
    task: asyncio.Task[None] | None = None


class PortForward:
    """All forwarded connections of one client connection."""

    def __init__(self, duplex: Duplex, open_socket: Opener) -> None:
        """Nothing is read or sent yet."""
        self._duplex = duplex
        self._open_socket = open_socket
        self._spdy = spdy.Connection()
        self._half: dict[str, _Pair] = {}
        self._by_data: dict[int, _Pair] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._gone = asyncio.Event()

    async def run(self) -> None:
        """Forward until the client goes away, or the pod; no task is left then."""
        reading = asyncio.create_task(self._read())
        gone = asyncio.create_task(self._pod_gone())
        try:
            await asyncio.wait((reading, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            tasks = [reading, gone, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pod_gone(self) -> None:
        await self._gone.wait()

    async def _read(self) -> None:
        try:
            while data := await self._duplex.read():
                for event in self._spdy.feed(data):
                    await self._handle(event)
        except (spdy.SpdyError, ClientGone) as exc:
            log.debug("port-forward ends: %r", exc)

    async def _handle(self, event: spdy.Event) -> None:
        match event:
            case spdy.Pinged(answer):
                await self._duplex.write(answer)
            case spdy.StreamOpened(stream, headers, _):
                await self._opened(stream, dict(headers))
            case spdy.StreamData(stream, data, ended):
                await self._received(stream, data, ended)
            case spdy.StreamReset(stream):
                self._give_up(stream)

    async def _opened(self, stream: int, headers: dict[str, str]) -> None:
        kind, text = headers.get("streamtype", ""), headers.get("port", "")
        port = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
        # Clients older than request ids open error and data right after each other: 1 and 3, 5 and 7, …
        request = headers.get("requestid") or f"stream-{stream if kind == 'error' else stream - 2}"
        pair = self._half.setdefault(request, _Pair())
        if kind not in ("data", "error") or not 1 <= port <= 65535 or getattr(pair, kind):
            if not (pair.data or pair.error):
                del self._half[request]
            await self._duplex.write(self._spdy.reset(stream, refused=True))
            return
        await self._duplex.write(self._spdy.accept(stream))
        setattr(pair, kind, stream)
        if pair.data and pair.error:
            del self._half[request]
            self._start(pair, port)

    def _start(self, pair: _Pair, port: int) -> None:
        async def send(piece: bytes) -> None:
            await self._duplex.write(self._spdy.send(pair.data, piece))

        pair.port, pair.forward = port, Forward(port, self._open_socket, send)
        pair.task = asyncio.create_task(self._forward(pair, pair.forward))
        self._by_data[pair.data] = pair
        self._tasks.add(pair.task)
        pair.task.add_done_callback(self._tasks.discard)

    async def _received(self, stream: int, data: bytes, ended: bool) -> None:
        pair = self._by_data.get(stream)
        if pair is None or pair.forward is None:
            return
        if data and not await pair.forward.feed(data):
            self._give_up(stream)
        if ended:
            pair.forward.end()

    def _give_up(self, stream: int) -> None:
        pair = self._by_data.get(stream)
        if pair is not None and pair.task is not None:
            pair.task.cancel()

    async def _forward(self, pair: _Pair, forward: Forward) -> None:
        """Run one connection; both of its streams are ended in any case, because kubectl waits for both."""
        why = "given up"
        try:
            why = await forward.run()
        except PodGone as exc:
            why = str(exc)
            self._gone.set()
        except ClientGone:
            return
        finally:
            self._by_data.pop(pair.data, None)
            last = self._spdy.reset(pair.data) if why else self._spdy.send(pair.data, b"", end=True)
            await self._farewell(self._spdy.send(pair.error, b"", end=True) + last)
            if why:
                log.info("port-forward to port %d: %s", pair.port, why)

    async def _farewell(self, frames: bytes) -> None:
        try:
            await self._duplex.write(frames)
        except ClientGone:
            log.debug("port-forward: the client has gone")
