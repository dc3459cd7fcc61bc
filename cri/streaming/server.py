"""The server behind stream addresses: /exec/<token>, /attach/<token>, /portforward/<token> on loopback.

One connection is one stream. A token that is wrong, used or too old gets 404 and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from cri.runtime.client import Runtime
from cri.state.store import Store, UnknownId
from cri.streaming import channels, http
from cri.streaming.session import ClientGone, CommandStreams, attach_session, exec_session
from cri.streaming.tokens import Tokens
from cri.streaming.ws_streams import WebSocketStreams, handshake
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
        elif request.upgrades_to("websocket"):
            await self._serve_websocket(request, asked, reader, writer)
        else:
            await _answer(writer, 400, "ask for an upgrade to websocket")

    async def _serve_websocket(
        self, request: http.Request, asked: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            protocol, accepted = handshake(request)
        except http.BadRequest as exc:
            await _answer(writer, 400, str(exc))
            return
        writer.write(accepted)
        streams = WebSocketStreams(reader, writer, protocol)
        await streams.greet(
            channels.STDOUT if asked.stdout else channels.STDERR if asked.stderr else channels.ERROR
        )
        await self._run_command(asked, streams)

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
