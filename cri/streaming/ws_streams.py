"""Exec and attach over a WebSocket: channel messages in frames, on an asyncio connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from cri.streaming import channels, websocket
from cri.streaming.channels import Outcome
from cri.streaming.duplex import TUNNEL, Duplex
from cri.streaming.http import BadRequest, Request, render_answer
from cri.streaming.session import ClientGone

_CLOSE_SECONDS = 5.0


def handshake(
    request: Request, known: Sequence[channels.Protocol] = channels.PROTOCOLS
) -> tuple[channels.Protocol, bytes]:
    """The protocol to speak and the bytes that accept it.

    Raises:
        BadRequest: not a WebSocket handshake, or none of its protocols is ours.
    """
    key = websocket.accept_key(request)
    protocol = channels.choose(request.words("sec-websocket-protocol"), known)
    if protocol is None:
        names = ", ".join(protocol.name for protocol in known)
        raise BadRequest(f"Sec-WebSocket-Protocol must name one of {names}")
    return protocol, _accept(key, protocol.name)


def tunnel_handshake(request: Request) -> bytes:
    """The bytes that accept a WebSocket with SPDY inside, for port-forward; empty when not asked for.

    Raises:
        BadRequest: not a WebSocket handshake.
    """
    key = websocket.accept_key(request)
    return _accept(key, TUNNEL) if TUNNEL in request.words("sec-websocket-protocol") else b""


def _accept(key: str, protocol: str) -> bytes:
    headers = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", key)]
    if protocol:
        headers.append(("Sec-WebSocket-Protocol", protocol))
    return render_answer(101, headers)


class WebSocketStreams:
    """`session.CommandStreams` for a connection whose handshake has been answered."""

    def __init__(self, duplex: Duplex, protocol: channels.Protocol) -> None:
        """Nothing is read or sent yet."""
        self._duplex = duplex
        self._protocol = protocol
        self._decoder = websocket.Decoder()

    async def greet(self, channel: int) -> None:
        """The empty message by which clients learn that the stream is open."""
        await self.write(channel, b"")

    async def write(self, channel: int, data: bytes) -> None:
        """Send output on a channel."""
        message = channels.encode(self._protocol, channel, data)
        await self._duplex.write(websocket.message(message, text=self._protocol.text))

    async def gone(self) -> None:
        """Return when the client has hung up."""
        await self._duplex.gone()

    async def finish(self, outcome: Outcome) -> None:
        """Send the status and the close frame, then give the client time to answer it.

        Closing at once could make the kernel send a reset for input we have not read, and a reset throws away
        output the client has not read yet.
        """
        status = channels.status_bytes(outcome, as_json=self._protocol.json_status)
        with suppress(ClientGone, TimeoutError):
            if status:
                await self.write(channels.ERROR, status)
            await self._duplex.write(websocket.close())
            await asyncio.wait_for(self._drain_input(), _CLOSE_SECONDS)

    async def _drain_input(self) -> None:
        while await self._duplex.read():
            continue

    async def events(self) -> AsyncIterator[channels.Event]:
        """What the client sends; ends when it closes, breaks the protocol, or is gone."""
        try:
            while data := await self._duplex.read():
                for event in self._decoder.feed(data):
                    if isinstance(event, websocket.Closed):
                        return
                    if isinstance(event, websocket.Ping):
                        await self._duplex.write(websocket.pong(event.data))
                    elif (decoded := channels.decode(self._protocol, event.data)) is not None:
                        yield decoded
        except websocket.WebSocketError as exc:
            await self._duplex.write(websocket.close(exc.code, str(exc)))
        except channels.ChannelError as exc:
            await self._duplex.write(websocket.close(1002, str(exc)))
