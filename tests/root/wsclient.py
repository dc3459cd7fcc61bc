"""A small WebSocket client for stream tests: masks, reads whole frames, sorts them by channel."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from contextlib import suppress
from typing import Any


def masked(data: bytes, mask: bytes) -> bytes:
    """Every byte combined with one of the mask's four."""
    repeated = (mask * (len(data) // 4 + 1))[: len(data)]
    value = int.from_bytes(data, "little") ^ int.from_bytes(repeated, "little")
    return value.to_bytes(len(data), "little")


class Stream:
    """One exec or attach connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: str) -> None:
        self.protocol = protocol
        self._reader = reader
        self._writer = writer
        self.output: dict[int, bytearray] = {channel: bytearray() for channel in range(5)}

    async def send(self, data: bytes, *, opcode: int = 2) -> None:
        """Send one masked frame."""
        mask = os.urandom(4)
        size = len(data)
        head = bytes((0x80 | opcode,))
        if size < 126:
            head += bytes((0x80 | size,))
        else:
            head += bytes((0x80 | 127,)) + size.to_bytes(8, "big")
        self._writer.write(head + mask + masked(data, mask))
        await self._writer.drain()

    async def send_on(self, channel: int, data: bytes) -> None:
        """Send data on a channel, as the protocol has it."""
        if "base64" in self.protocol:
            await self.send(b"%d" % channel + base64.b64encode(data), opcode=1)
        else:
            await self.send(bytes((channel,)) + data)

    async def read(self) -> tuple[int, bytes]:
        """The next frame: opcode and payload."""
        head = await self._reader.readexactly(2)
        size = head[1] & 0x7F
        if size == 126:
            size = int.from_bytes(await self._reader.readexactly(2), "big")
        elif size == 127:
            size = int.from_bytes(await self._reader.readexactly(8), "big")
        return head[0] & 0x0F, await self._reader.readexactly(size)

    async def read_message(self) -> tuple[int, bytes]:
        """The next data frame: channel and content, also added to `output`. EOFError at the close frame."""
        opcode, payload = await self.read()
        if opcode == 8:
            raise EOFError
        if "base64" in self.protocol:
            payload = bytes((payload[0] - ord("0"),)) + base64.b64decode(payload[1:])
        self.output[payload[0]] += payload[1:]
        return payload[0], payload[1:]

    async def read_until(self, text: bytes, channel: int = 1) -> None:
        """Read until the output of a channel holds a text."""
        while text not in self.output[channel]:
            await asyncio.wait_for(self.read_message(), 10)

    async def read_to_end(self) -> dict[str, Any]:
        """Read until the server closes; the status."""
        try:
            while True:
                await asyncio.wait_for(self.read_message(), 20)
        except EOFError:
            with suppress(ConnectionError):  # the server may have hung up already
                await self.send(b"\x03\xe8", opcode=8)
            self.close()
            await asyncio.sleep(0)
            return json.loads(self.output[3])

    def close(self) -> None:
        """Drop the connection without a word."""
        self._writer.transport.abort()


async def request(url: str, lines: str) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request head to a stream address; the answer's head."""
    host, port = url.split("/")[2].split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    path = "/" + url.split("/", 3)[3]
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10), reader, writer


async def open_stream(url: str, protocol: str = "v5.channel.k8s.io") -> Stream:
    """A WebSocket to a stream address; AssertionError when it is refused."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    lines += f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {protocol}\r\n"
    head, reader, writer = await request(url, lines)
    if not head.startswith(b"HTTP/1.1 101 "):
        writer.close()
        raise AssertionError(head)
    return Stream(reader, writer, protocol)
