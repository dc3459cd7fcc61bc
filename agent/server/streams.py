"""Passing an upgraded connection through: exec, attach, port-forward.

The runtime answers a CRI Exec with the address of a stream server; the client's upgrade request goes there as
it came, the answer comes back as it is, and from then on bytes go both ways unseen (WebSocket or SPDY,
whatever the two agreed on). With back-pressure: a side that cannot be written to stops the other side's
reading.

A redirect or any other answer than 101 from the stream server is never followed (CVE-2018-1002105,
CVE-2020-8559).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web

log = logging.getLogger(__name__)
HEAD_LIMIT = 16384
CONNECT_TIMEOUT = 10.0

_NOT_PASSED_ON = frozenset({"host", "authorization", "cookie", "content-length", "transfer-encoding"})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class StreamError(Exception):
    """The stream server cannot be used; `status` is the HTTP code for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def request_head(method: str, url: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """The bytes of the request to the stream server. Raises StreamError when a header holds a line break."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers if name.lower() not in _NOT_PASSED_ON]
    if any("\r" in line or "\n" in line for line in lines):
        raise StreamError(400, "header with a line break")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def response_status(head: bytes) -> int:
    """The code in an answer's first line; 0 when it is not HTTP/1.1."""
    words = head.split(b"\r\n", 1)[0].split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[0] == b"HTTP/1.1" and words[1].isdigit() else 0


class Side(asyncio.Protocol):
    """One end of the pipe: what arrives here goes out at `peer`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer: Side | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        peer = self.peer.transport if self.peer else None
        if peer is not None and peer.can_write_eof() and not peer.is_closing():
            peer.write_eof()
            # TLS has no half-open state in asyncio: there the return value would only be warned about.
            return self.transport is not None and self.transport.get_extra_info("ssl_object") is None
        return False

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.close()
        if not self.closed.done():
            self.closed.set_result(None)


class UpstreamSide(Side):
    """The end towards the stream server; first collects the head of its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        if self.head.done():
            super().data_received(data)
            return
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end >= 0:
            # Nothing more is read until the client's side is in place.
            if self.transport is not None:
                self.transport.pause_reading()
            self.head.set_result(self._buffer)
        elif len(self._buffer) > HEAD_LIMIT:
            self.head.set_exception(StreamError(502, "the runtime's stream server sent no HTTP head"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.head.done():
            self.head.set_exception(StreamError(502, "the runtime's stream server closed the connection"))
        super().connection_lost(exc)


class ClientSide(Side):
    """The end towards the client, taking over from the HTTP protocol, which still has to learn of the end."""

    def __init__(self, http: asyncio.BaseProtocol) -> None:
        super().__init__()
        self._http = http

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._http.connection_lost(exc)


async def pass_through(request: web.Request, url: str) -> None:
    """Connect the request to the stream at `url`; returns when both ends are closed.

    Raises:
        StreamError: nothing was sent to the client yet.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise StreamError(502, f"the runtime's stream address {parts.scheme}://{parts.netloc} is not http")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, upstream = await loop.create_connection(UpstreamSide, parts.hostname, parts.port or 80)
    except (OSError, TimeoutError) as exc:
        raise StreamError(502, f"the runtime's stream server does not answer: {exc}") from exc
    assert upstream.transport is not None
    try:
        upstream.transport.write(request_head(request.method, url, request.headers.items()))
        async with asyncio.timeout(CONNECT_TIMEOUT * 3):
            answer = await upstream.head
    except TimeoutError as exc:
        upstream.transport.abort()
        raise StreamError(504, "the runtime's stream server did not answer the upgrade") from exc
    except StreamError:
        upstream.transport.abort()
        raise
    status = response_status(answer)
    if status != 101:
        upstream.transport.abort()
        body = answer.partition(b"\r\n\r\n")[2][:200].decode("utf-8", "replace").strip()
        raise StreamError(502, f"the runtime's stream server answered {status} instead of 101: {body}")
    await _join(request, upstream, answer)


async def _join(request: web.Request, upstream: UpstreamSide, answer: bytes) -> None:
    transport = request.transport
    if transport is None or transport.is_closing() or upstream.transport is None:
        upstream.head.cancel()
        if upstream.transport is not None:
            upstream.transport.abort()
        raise StreamError(499, "the client went away")
    client = ClientSide(request.protocol)
    client.transport = transport
    client.peer, upstream.peer = upstream, client
    transport.set_protocol(client)
    transport.write(answer)
    upstream.transport.resume_reading()
    transport.resume_reading()
    try:
        await asyncio.gather(client.closed, upstream.closed)
    finally:
        transport.close()
        upstream.transport.close()
