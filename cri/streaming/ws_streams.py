"""Exec and attach over a WebSocket: channel messages in frames, on an asyncio connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from cri.streaming import channels, websocket
from cri.streaming.channels import Outcome
from cri.streaming.duplex import TUNNEL
from cri.streaming.http import BadRequest, Request, render_answer
from cri.streaming.session import ClientGone

_READ = 64 << 10
_CLOSE_SECONDS = 5.0


def handshake(request: Request) -> tuple[channels.Protocol, bytes]:
    """The protocol to speak and the bytes that accept it.

    Raises:
        BadRequest: not a WebSocket handshake, or none of its protocols is ours.
    """
    key = websocket.accept_key(request)
    protocol = channels.choose(request.words("sec-websocket-protocol"))
    if protocol is None:
        raise BadRequest("no known subprotocol; use v5.channel.k8s.io or v4.channel.k8s.io")
    return protocol, _accept(key, protocol.name)


def tunnel_handshake(request: Request) -> bytes:
    """The bytes that accept a WebSocket with SPDY inside, for port-forward.

    Raises:
        BadRequest: not a WebSocket handshake, or not with this subprotocol.
    """
    key = websocket.accept_key(request)
    if TUNNEL not in request.words("sec-websocket-protocol"):
        raise BadRequest(f"port-forward needs the subprotocol {TUNNEL}")
    return _accept(key, TUNNEL)


def _accept(key: str, protocol: str) -> bytes:
    headers = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", key)]
    if protocol:
        headers.append(("Sec-WebSocket-Protocol", protocol))
    return render_answer(101, headers)


class WebSocketStreams:
    """`session.CommandStreams` for a connection whose handshake has been answered."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: channels.Protocol
    ) -> None:
        """Nothing is read or sent yet."""
        self._reader = reader
        self._writer = writer
        self._protocol = protocol
        self._decoder = websocket.Decoder()

    async def greet(self, channel: int) -> None:
        """The empty message by which clients learn that the stream is open."""
        await self.write(channel, b"")

    async def write(self, channel: int, data: bytes) -> None:
        """Send output on a channel."""
        message = channels.encode(self._protocol, channel, data)
        await self._send(websocket.message(message, text=self._protocol.text))

    async def _send(self, frame: bytes) -> None:
        try:
            self._writer.write(frame)
            await self._writer.drain()
        except ConnectionError as exc:
            raise ClientGone from exc

    async def finish(self, outcome: Outcome) -> None:
        """Send the status and the close frame, then give the client time to answer it.

        Closing at once could make the kernel send a reset for input we have not read, and a reset throws away
        output the client has not read yet.
        """
        status = channels.status_bytes(outcome, as_json=self._protocol.json_status)
        with suppress(ClientGone, TimeoutError, ConnectionError):
            if status:
                await self.write(channels.ERROR, status)
            await self._send(websocket.close())
            await asyncio.wait_for(self._drain_input(), _CLOSE_SECONDS)

    async def _drain_input(self) -> None:
        while await self._reader.read(_READ):
            continue

    async def events(self) -> AsyncIterator[channels.Event]:
        """What the client sends; ends when it closes, breaks the protocol, or is gone."""
        try:
            while data := await self._reader.read(_READ):
                for event in self._decoder.feed(data):
                    if isinstance(event, websocket.Closed):
                        return
                    if isinstance(event, websocket.Ping):
                        await self._send(websocket.pong(event.data))
                    elif (decoded := channels.decode(self._protocol, event.data)) is not None:
                        yield decoded
        except websocket.WebSocketError as exc:
            await self._send(websocket.close(exc.code, str(exc)))
        except channels.ChannelError as exc:
            await self._send(websocket.close(1002, str(exc)))
        except ConnectionError:
            return
