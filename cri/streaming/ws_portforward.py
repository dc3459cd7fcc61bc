"""Port-forward over WebSocket channels: data and error for each port of the request, both begun by the port.

The older of the two WebSocket ways (kubernetes, cri-streaming portforward/websocket.go); kubectl uses SPDY in
WebSocket messages instead. Each port has one connection, so its error channel may say what went wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from cri.streaming import channels, websocket
from cri.streaming.duplex import Duplex
from cri.streaming.forwarding import Forward, Opener, PodGone
from cri.streaming.session import ClientGone

PROTOCOLS = tuple(found for found in channels.PROTOCOLS if found.json_status and not found.closes)
"""v4.channel.k8s.io and its base64 kind."""


class ChannelPortForward:
    """One connection to each port, until all have ended or the client has gone."""

    def __init__(
        self, duplex: Duplex, protocol: channels.Protocol, ports: Sequence[int], open_socket: Opener
    ) -> None:
        """Nothing is read or sent yet."""
        self._duplex = duplex
        self._protocol = protocol
        self._forwards = [
            Forward(port, open_socket, self._sender(2 * index)) for index, port in enumerate(ports)
        ]

    def _sender(self, channel: int) -> Callable[[bytes], Awaitable[None]]:
        async def send(data: bytes) -> None:
            message = channels.encode(self._protocol, channel, data)
            await self._duplex.write(websocket.message(message, text=self._protocol.text))

        return send

    async def run(self) -> None:
        """Forward; no task is left then."""
        forwarding = [asyncio.create_task(self._forward(index)) for index in range(len(self._forwards))]
        reading = asyncio.create_task(self._read())
        done = asyncio.gather(*forwarding, return_exceptions=True)
        try:
            await asyncio.wait((reading, done), return_when=asyncio.FIRST_COMPLETED)
            with suppress(ClientGone):
                await self._duplex.write(websocket.close())
        finally:
            for task in (reading, *forwarding):
                task.cancel()
            await asyncio.gather(reading, *forwarding, return_exceptions=True)

    async def _forward(self, index: int) -> None:
        forward, error = self._forwards[index], self._sender(2 * index + 1)
        start = forward.port.to_bytes(2, "little")
        await self._sender(2 * index)(start)
        await error(start)
        try:
            why = await forward.run()
        except PodGone as exc:
            why = str(exc)
        if why:
            await error(f"error forwarding port {forward.port}: {why}".encode())

    async def _read(self) -> None:
        decoder = websocket.Decoder()
        try:
            while data := await self._duplex.read():
                for event in decoder.feed(data):
                    if isinstance(event, websocket.Closed):
                        return
                    if isinstance(event, websocket.Ping):
                        await self._duplex.write(websocket.pong(event.data))
                    else:
                        await self._message(event.data)
        except websocket.WebSocketError as exc:
            await self._duplex.write(websocket.close(exc.code, str(exc)))
        except channels.ChannelError as exc:
            await self._duplex.write(websocket.close(1002, str(exc)))

    async def _message(self, message: bytes) -> None:
        channel, data = channels.split(self._protocol, message)
        if channel % 2 == 0 and channel // 2 < len(self._forwards) and data:
            await self._forwards[channel // 2].feed(data)
