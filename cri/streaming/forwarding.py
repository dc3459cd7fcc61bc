"""One forwarded connection: from a client's stream to a TCP port on the pod's own loopback, and back.

The socket is made inside the pod's network namespace, so nothing else on the node can be reached. Both ways
are held back by whoever is slower; a target that takes nothing for a while is given up.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from host.errors import NotFound

_CONNECT_SECONDS = 10.0
_STALL_SECONDS = 30.0
_QUEUE_BYTES = 1 << 20
_READ = 128 << 10

Opener = Callable[[int], socket.socket]
"""Makes a TCP socket (AF_INET or AF_INET6, as asked) inside the pod's network namespace."""


class PodGone(Exception):
    """The pod's network namespace is not there any more: no connection of its client can be made again."""


class Forward:
    """A connection that is fed by its client and run by a task of its own."""

    def __init__(self, port: int, open_socket: Opener, send: Callable[[bytes], Awaitable[None]]) -> None:
        """`send`: passes bytes to the client; returns when there is room for more."""
        self.port = port
        self._open_socket = open_socket
        self._send = send
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._fed = asyncio.Event()
        self._drained = asyncio.Event()
        self._ended = False

    async def feed(self, data: bytes) -> bool:
        """Bytes for the target; False when it has taken none for so long that it should be given up.

        Waiting holds up the client's other connections too, as SPDY without windows has it for all servers.
        """
        self._queue.append(data)
        self._queued += len(data)
        self._fed.set()
        try:
            while self._queued > _QUEUE_BYTES and not self._ended:
                self._drained.clear()
                async with asyncio.timeout(_STALL_SECONDS):
                    await self._drained.wait()
        except TimeoutError:
            return False
        return True

    def end(self) -> None:
        """The client sends nothing more; what it has sent still goes to the target."""
        self._ended = True
        self._fed.set()

    async def run(self) -> str:
        """Connect and copy both ways until the target has said all; why it did not come to that, else "".

        Raises:
            PodGone: there is no pod to connect to.
            ClientGone: from `send`.
        """
        try:
            reader, writer = await self._connect()
        except NotFound as exc:
            raise PodGone(str(exc)) from exc
        except OSError as exc:
            return os.strerror(exc.errno).lower() if exc.errno else "no answer in time"
        sender = asyncio.create_task(self._pass_on(writer))
        try:
            while piece := await reader.read(_READ):
                await self._send(piece)
            return ""
        except ConnectionError as exc:
            return os.strerror(exc.errno).lower() if exc.errno else "connection lost"
        finally:
            self._ended = True
            self._drained.set()
            sender.cancel()
            writer.transport.abort()

    async def _pass_on(self, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:
                while self._queue:
                    data = self._queue.popleft()
                    writer.write(data)
                    await writer.drain()
                    self._queued -= len(data)
                    self._drained.set()
                if self._ended:
                    writer.write_eof()
                    return
                self._fed.clear()
                await self._fed.wait()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """IPv4 first.

        Raises:
            NotFound: no network namespace.
            OSError: nobody listens, or it takes too long.
        """
        try:
            return await self._connect_to(socket.AF_INET, "127.0.0.1")
        except ConnectionRefusedError as first:
            try:
                return await self._connect_to(socket.AF_INET6, "::1")
            except NotFound:
                raise
            except OSError:
                raise first from None

    async def _connect_to(self, family: int, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = await asyncio.to_thread(self._open_socket, family)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(_CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, (host, self.port))
        except BaseException:
            sock.close()
            raise
        return await asyncio.open_connection(sock=sock, limit=_READ)
