"""The server behind stream addresses: /exec/<token>, /attach/<token>, /portforward/<token> on loopback.

One connection is one stream. A token that is wrong, used or too old gets 404 and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any

from cri.runtime.client import Runtime
from cri.state.store import Store, UnknownId
from cri.streaming import channels, http, portforward, spdy_streams, ws_streams
from cri.streaming.duplex import Duplex, Plain, Tunnel
from cri.streaming.session import ClientGone, CommandStreams, attach_session, exec_session
from cri.streaming.tokens import Tokens
from host import netns
from host.errors import InputError
from proto.cri import runtime_pb2 as pb

log = logging.getLogger(__name__)

_HEAD_SECONDS = 10.0
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

    async def start(self, host: str, port: int) -> str:
        """Listen; the base address of streams.

        Raises:
            InputError: the port is taken.
        """
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

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (ClientGone, ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            log.debug("stream ended by its client")
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
        plain, forward = Plain(reader, writer), isinstance(asked, pb.PortForwardRequest)
        if request.upgrades_to("spdy/3.1"):
            known = portforward.PROTOCOLS if forward else spdy_streams.PROTOCOLS
            protocol, accepted = spdy_streams.handshake(request, known)
            await plain.write(accepted)
            if forward:
                await self._run_forward(asked, plain)
                return
            streams = spdy_streams.SpdyStreams(plain, protocol)
            await streams.open(spdy_streams.expected(asked, protocol))
            await self._run_command(asked, streams)
        elif request.upgrades_to("websocket") and forward:
            await plain.write(ws_streams.tunnel_handshake(request))
            await self._run_forward(asked, Tunnel(plain))
        elif request.upgrades_to("websocket"):
            chosen, accepted = ws_streams.handshake(request)
            await plain.write(accepted)
            web = ws_streams.WebSocketStreams(reader, writer, chosen)
            await web.greet(
                channels.STDOUT if asked.stdout else channels.STDERR if asked.stderr else channels.ERROR
            )
            await self._run_command(asked, web)
        else:
            raise http.BadRequest("ask for an upgrade to websocket or SPDY/3.1")

    async def _run_forward(self, asked: pb.PortForwardRequest, duplex: Duplex) -> None:
        try:
            path = self._store.sandbox(asked.pod_sandbox_id).record.netns
        except (UnknownId, InputError):
            return

        def open_socket(family: int) -> socket.socket:
            if path:
                return netns.open_socket(path, family, socket.SOCK_STREAM)
            return socket.socket(family, socket.SOCK_STREAM)

        await portforward.PortForward(duplex, open_socket).run()

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
