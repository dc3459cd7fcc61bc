"""Exec and attach over SPDY: one SPDY stream each for error, stdin, stdout, stderr and terminal size.

The client opens them all before anything runs; which ones it must open follows from the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from cri.streaming import channels, spdy
from cri.streaming.channels import Input, InputEnd, Outcome
from cri.streaming.duplex import Duplex
from cri.streaming.http import BadRequest, Request, render_answer
from cri.streaming.session import ClientGone
from proto.cri import runtime_pb2 as pb

PROTOCOLS = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
_VERSION_HEADER = "x-stream-protocol-version"
_SETUP_SECONDS = 30.0
_CLOSE_SECONDS = 5.0
_CHANNELS = {
    "stdin": channels.STDIN,
    "stdout": channels.STDOUT,
    "stderr": channels.STDERR,
    "error": channels.ERROR,
    "resize": channels.RESIZE,
}
_PIECE = 256 << 10
_EARLY_EVENTS = 1024


def handshake(request: Request, supported: Sequence[str]) -> tuple[str, bytes]:
    """The protocol to speak and the bytes that accept it.

    Raises:
        BadRequest: the client offers none that we speak.
    """
    offered = request.words(_VERSION_HEADER)
    protocol = next((name for name in offered if name in supported), None)
    if protocol is None:
        raise BadRequest(f"X-Stream-Protocol-Version must name one of {', '.join(supported)}")
    headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "SPDY/3.1"),
        ("X-Stream-Protocol-Version", protocol),
    ]
    return protocol, render_answer(101, headers)


def expected(asked: pb.ExecRequest | pb.AttachRequest, protocol: str) -> set[int]:
    """The channels a client opens for a request."""
    wanted = {channels.ERROR}
    for flag, channel in (
        (asked.stdin, channels.STDIN),
        (asked.stdout, channels.STDOUT),
        (asked.stderr, channels.STDERR),
        (asked.tty and protocol.startswith(("v3", "v4")), channels.RESIZE),
    ):
        if flag:
            wanted.add(channel)
    return wanted


class SpdyStreams:
    """`session.CommandStreams` for a connection whose upgrade has been answered."""

    def __init__(self, duplex: Duplex, protocol: str) -> None:
        """Nothing is read or sent yet."""
        self._duplex = duplex
        self._protocol = protocol
        self._spdy = spdy.Connection()
        self._by_channel: dict[int, int] = {}
        self._by_stream: dict[int, int] = {}
        self._resize = bytearray()
        self._early: list[spdy.Event] = []

    async def open(self, wanted: set[int]) -> None:
        """Wait until the client has opened its streams.

        Raises:
            TimeoutError: it has not, in half a minute.
            ClientGone: it went away.
        """
        async with asyncio.timeout(_SETUP_SECONDS):
            while not wanted <= self._by_channel.keys():
                await self._open_some()

    async def _open_some(self) -> None:
        for event in await self._receive():
            if isinstance(event, spdy.StreamOpened):
                channel = _CHANNELS.get(event.headers.get("streamtype", ""))
                if channel is None or channel in self._by_channel:
                    await self._duplex.write(self._spdy.reset(event.stream, refused=True))
                    continue
                self._by_channel[channel] = event.stream
                self._by_stream[event.stream] = channel
                await self._duplex.write(self._spdy.accept(event.stream))
            elif len(self._early) < _EARLY_EVENTS:
                self._early.append(event)
            else:
                raise spdy.SpdyError("input before its stream's siblings are open")

    async def _receive(self) -> list[spdy.Event]:
        data = await self._duplex.read()
        if not data:
            raise ClientGone
        events: list[spdy.Event] = []
        for event in self._spdy.feed(data):
            if isinstance(event, spdy.Pinged):
                await self._duplex.write(event.answer)
            else:
                events.append(event)
        return events

    async def write(self, channel: int, data: bytes) -> None:
        """Send output on a channel; one the client has not opened takes nothing."""
        stream = self._by_channel.get(channel)
        for at in range(0, len(data) if stream is not None else 0, _PIECE):
            await self._duplex.write(self._spdy.send(stream or 0, data[at : at + _PIECE]))

    async def gone(self) -> None:
        """Return when the client has hung up."""
        await self._duplex.gone()

    async def finish(self, outcome: Outcome) -> None:
        """Send the status, end every stream, then give the client time to hang up."""
        status = channels.status_bytes(outcome, as_json=self._protocol.startswith("v4"))
        with suppress(ClientGone, TimeoutError, spdy.SpdyError):
            for channel in (channels.STDOUT, channels.STDERR):
                await self._end(channel)
            await self.write(channels.ERROR, status)
            await self._end(channels.ERROR)
            await self._duplex.write(self._spdy.leave())
            async with asyncio.timeout(_CLOSE_SECONDS):
                while await self._duplex.read():
                    continue

    async def _end(self, channel: int) -> None:
        if channel in self._by_channel:
            await self._duplex.write(self._spdy.send(self._by_channel[channel], b"", end=True))

    async def events(self) -> AsyncIterator[channels.Event]:
        """What the client sends; ends when it is gone or breaks the protocol."""
        try:
            while True:
                waiting, self._early = self._early, []
                for event in waiting or await self._receive():
                    for decoded in self._decode(event):
                        yield decoded
        except (ClientGone, spdy.SpdyError):
            return

    def _decode(self, event: spdy.Event) -> list[channels.Event]:
        found: list[channels.Event] = []
        if isinstance(event, spdy.StreamReset) and self._by_stream.get(event.stream) == channels.STDIN:
            return [InputEnd()]
        if not isinstance(event, spdy.StreamData):
            return found
        channel = self._by_stream.get(event.stream)
        if channel == channels.STDIN:
            if event.data:
                found.append(Input(event.data))
            if event.ended:
                found.append(InputEnd())
        elif channel == channels.RESIZE:
            self._resize = (self._resize + event.data)[-4096:]
            while b"}" in self._resize:
                text, _, rest = self._resize.partition(b"}")
                self._resize = bytearray(rest)
                if (size := channels.parse_resize(bytes(text) + b"}")) is not None:
                    found.append(size)
        return found
