"""The server behind stream addresses: /exec/<token>, /attach/<token>, /portforward/<token> on loopback.

One connection is one stream. A token that is wrong, used or too old gets 404 and nothing else.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from contextlib import suppress
from typing import Any

from cri.runtime.client import Runtime
from cri.state.store import Store, UnknownId
from cri.streaming import channels, http, portforward, spdy, spdy_streams, ws_portforward, ws_streams
from cri.streaming.duplex import Duplex, Plain, Tunnel
from cri.streaming.forwarding import Opener
from cri.streaming.hangups import HangUps
from cri.streaming.session import ClientGone, CommandStreams, attach_session, exec_session
from cri.streaming.tokens import Tokens
from host import netns
from host.errors import InputError, from_errno
from proto.cri import runtime_pb2 as pb

log = logging.getLogger(__name__)

_HEAD_SECONDS = 10.0
_CONNECTIONS = 2048
"""At once, so that whoever can dial loopback cannot use up our descriptors."""
_NO_UPGRADE = "ask for an upgrade to websocket or SPDY/3.1"
_ACTIONS = {"exec": pb.ExecRequest, "attach": pb.AttachRequest, "portforward": pb.PortForwardRequest}


class StreamServer:
    """Accepts stream connections and gives each its session. Owns every task it starts."""

    def __init__(self, *, tokens: Tokens, runtime: Runtime, store: Store) -> None:
        """Nothing listens before `start`."""
        self._tokens = tokens
        self._runtime = runtime
        self._store = store
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()
        self._hang_ups: HangUps | None = None

    async def start(self, host: str, port: int) -> str:
        """Listen; the base address of streams.

        Raises:
            InputError: the port is taken.
        """
        self._hang_ups = HangUps()
        try:
            self._server = await asyncio.start_server(self._connected, host, port, limit=http.HEAD_LIMIT)
        except OSError as exc:
            raise InputError(f"cannot listen on {host}:{port}: {exc.strerror}; set --stream-address") from exc
        actual = self._server.sockets[0].getsockname()[1]
        return f"http://[{host}]:{actual}" if ":" in host else f"http://{host}:{actual}"

    async def close(self) -> None:
        """Stop listening and end every stream."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._hang_ups is not None:
            self._hang_ups.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= _CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (
            ClientGone,
            ConnectionError,
            TimeoutError,
            asyncio.IncompleteReadError,
            spdy.SpdyError,
        ) as exc:
            log.debug("stream ended by its client: %r", exc)
        except asyncio.CancelledError:
            log.debug("stream ended by shutdown")
        except Exception:
            log.exception("stream failed")
        finally:
            self._connections.discard(task)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _HEAD_SECONDS)
            request = http.parse_head(head)
        except (http.BadRequest, asyncio.LimitOverrunError) as exc:
            await _answer(writer, 400, str(exc))
            return
        action, _, token = request.path.strip("/").partition("/")
        asked = self._tokens.consume(token) if action in _ACTIONS else None
        if asked is None or not isinstance(asked, _ACTIONS[action]):
            await _answer(writer, 404, "no such stream: its address is used up or too old")
            return
        try:
            await self._upgrade(request, asked, reader, writer)
        except http.BadRequest as exc:
            await _answer(writer, 400, str(exc))

    async def _upgrade(
        self, request: http.Request, asked: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Go on in the protocol the client asks for.

        Raises:
            BadRequest: it asks for none that we speak; nothing has been answered then.
        """
        assert self._hang_ups is not None
        plain = Plain(reader, writer, self._hang_ups)
        if isinstance(asked, pb.PortForwardRequest):
            await self._forward(request, asked, plain)
        elif request.upgrades_to("spdy/3.1"):
            protocol, accepted = spdy_streams.handshake(request, spdy_streams.PROTOCOLS)
            await plain.write(accepted)
            streams = spdy_streams.SpdyStreams(plain, protocol)
            await streams.open(spdy_streams.expected(asked, protocol))
            await self._run_command(asked, streams)
        elif request.upgrades_to("websocket"):
            chosen, accepted = ws_streams.handshake(request)
            await plain.write(accepted)
            web = ws_streams.WebSocketStreams(plain, chosen)
            await web.greet(
                channels.STDOUT if asked.stdout else channels.STDERR if asked.stderr else channels.ERROR
            )
            await self._run_command(asked, web)
        else:
            raise http.BadRequest(_NO_UPGRADE)

    async def _forward(self, request: http.Request, asked: pb.PortForwardRequest, plain: Duplex) -> None:
        """The three ways to forward ports; raises as `_upgrade`."""
        opener = self._opener(asked.pod_sandbox_id)
        if request.upgrades_to("spdy/3.1"):
            _, accepted = spdy_streams.handshake(request, portforward.PROTOCOLS)
            await plain.write(accepted)
            await portforward.PortForward(plain, opener).run()
        elif not request.upgrades_to("websocket"):
            raise http.BadRequest(_NO_UPGRADE)
        elif accepted := ws_streams.tunnel_handshake(request):
            await plain.write(accepted)
            tunnel = Tunnel(plain)
            await portforward.PortForward(tunnel, opener).run()
            await tunnel.close()
        else:
            chosen, accepted = ws_streams.handshake(request, ws_portforward.PROTOCOLS)
            await plain.write(accepted)
            await ws_portforward.ChannelPortForward(plain, chosen, asked.port, opener).run()

    def _opener(self, sandbox_id: str) -> Opener:
        def open_socket(family: int) -> socket.socket:
            try:
                path = self._store.sandbox(sandbox_id).record.netns
            except (UnknownId, InputError) as exc:
                raise from_errno(errno.ENOENT, f"pod sandbox {sandbox_id}") from exc
            if path:
                return netns.open_socket(path, family, socket.SOCK_STREAM)
            return socket.socket(family, socket.SOCK_STREAM)

        return open_socket

    async def _run_command(self, asked: pb.ExecRequest | pb.AttachRequest, streams: CommandStreams) -> None:
        try:
            container = self._store.container(asked.container_id)
        except (UnknownId, InputError) as exc:
            await streams.finish(channels.Outcome(error=str(exc)))
            return
        sandbox_id = container.record.sandbox_id
        if isinstance(asked, pb.ExecRequest):
            await exec_session(self._runtime, asked, streams, sandbox_id=sandbox_id)
        else:
            await attach_session(self._runtime, asked, streams, sandbox_id=sandbox_id, ended=container.ended)


async def _answer(writer: asyncio.StreamWriter, status: int, words: str) -> None:
    writer.write(http.render_answer(status, body=words + "\n"))
    await writer.drain()
