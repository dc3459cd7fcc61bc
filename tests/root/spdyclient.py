"""A small SPDY/3.1 client for stream tests, over plain bytes or inside WebSocket messages."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Awaitable, Callable

from wsclient import request

from cri.streaming.spdy_dictionary import DICTIONARY

UPGRADE = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {}\r\n"


class SpdyClient:
    """Opens streams and collects what comes back on each."""

    def __init__(
        self, read: Callable[[], Awaitable[bytes]], write: Callable[[bytes], Awaitable[None]]
    ) -> None:
        self._read = read
        self._write = write
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._buffer = b""
        self._next = 1
        self.output: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.reset: set[int] = set()
        self.replied: set[int] = set()
        self.pinged = 0

    async def open(self, **headers: str) -> int:
        """Open a stream with these headers; its number."""
        stream, self._next = self._next, self._next + 2
        plain = struct.pack(">I", len(headers))
        for name, value in headers.items():  # names are lower case on the wire (SPDY/3.1, 3.2.1)
            for word in (name.lower(), value):
                plain += struct.pack(">I", len(word)) + word.encode()
        block = self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        payload = struct.pack(">IIH", stream, 0, 0) + block
        self.output[stream] = bytearray()
        await self._write(struct.pack(">II", 0x80030001, len(payload)) + payload)
        return stream

    async def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Data on a stream."""
        await self._write(struct.pack(">II", stream, (1 << 24 if end else 0) | len(data)) + data)

    async def ping(self) -> None:
        """A ping."""
        await self._write(struct.pack(">III", 0x80030006, 4, 1))

    async def give_up(self, stream: int) -> None:
        """Reset a stream."""
        await self._write(struct.pack(">IIII", 0x80030003, 8, stream, 5))

    async def pump(self) -> None:
        """Take in some frames. EOFError at the end."""
        data = await asyncio.wait_for(self._read(), 60)
        if not data:
            raise EOFError
        self._buffer += data
        while len(self._buffer) >= 8:
            first, second = struct.unpack_from(">II", self._buffer)
            size = second & 0xFFFFFF
            if len(self._buffer) < 8 + size:
                return
            payload, self._buffer = self._buffer[8 : 8 + size], self._buffer[8 + size :]
            if not first >> 31:
                self.output[first] += payload
                if second >> 24 & 1:
                    self.ended.add(first)
                continue
            number = struct.unpack_from(">I", payload)[0]
            kind = first & 0xFFFF
            if kind == 2:
                self.replied.add(number)
            elif kind == 3:
                self.reset.add(number)
            elif kind == 6:
                self.pinged += 1

    async def wait(self, done: Callable[[], bool]) -> None:
        """Take in frames until a condition holds."""
        while not done():
            await self.pump()


async def connect(url: str, protocols: str) -> tuple[SpdyClient, asyncio.StreamWriter]:
    """A client on a stream address; the first of the protocols must have been chosen."""
    head, reader, writer = await request(url, UPGRADE.format(protocols))
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert f"X-Stream-Protocol-Version: {protocols.split(',')[0]}".encode() in head

    async def write(data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    return SpdyClient(lambda: reader.read(65536), write), writer
