"""The kubelet API on port 10250 (TLS) and healthz on its own plain port.

Order of every request: route, authentication (401), authorization (403), then existence (404) and method
(405), so that a stranger learns nothing. Each stream and each refusal leaves one line in the log: who, what,
result.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import ssl
from collections.abc import Callable

from aiohttp import web

from agent.server import routes
from agent.server.auth import Gate, Refused, Unknown, User
from agent.server.handlers import Handlers
from agent.server.listening import cannot_listen
from agent.server.parameters import BadParameter
from agent.server.routes import Match

log = logging.getLogger(__name__)
BODY_LIMIT = 1 << 20
HEADER_LIMIT = 16384
_AUDITED = frozenset({"exec", "attach", "port_forward", "run", "container_logs"})


@dataclasses.dataclass(frozen=True)
class Listen:
    """Where to listen; port 0 of healthz: not at all."""

    address: str
    port: int
    healthz_address: str
    healthz_port: int


class KubeletServer:
    """Both listeners. `run()` until cancelled.

    Args:
        context: makes the TLS context, blocking (it may generate a key); called once, in a thread.
    """

    def __init__(
        self, *, listen: Listen, context: Callable[[], ssl.SSLContext], gate: Gate, handlers: Handlers
    ) -> None:
        self._listen = listen
        self._context = context
        self._gate = gate
        self._handlers = handlers
        self._table = handlers.table()
        self.started = asyncio.Event()

    async def run(self) -> None:
        """Listen until cancelled. Raises InputError when a port is taken."""
        runners: list[web.AppRunner] = []
        try:
            if self._listen.healthz_port:
                runners.append(await self._start(self._healthz_app(), None))
            context = await asyncio.to_thread(self._context)
            runners.append(await self._start(self._app(), context))
            self.started.set()
            await asyncio.Event().wait()
        finally:
            for runner in runners:
                await runner.cleanup()

    async def _start(self, app: web.Application, context: ssl.SSLContext | None) -> web.AppRunner:
        address, port = (
            (self._listen.address, self._listen.port)
            if context
            else (self._listen.healthz_address, self._listen.healthz_port)
        )
        runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=75,
            max_line_size=HEADER_LIMIT,
            max_field_size=HEADER_LIMIT,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        site = web.TCPSite(runner, address, port, ssl_context=context)
        try:
            await site.start()
        except OSError as exc:
            await runner.cleanup()
            field = "port" if context is not None else "healthzPort"
            raise cannot_listen(exc, address, port, field=field) from exc
        log.info("listening address=%s port=%d tls=%s", address, port, str(context is not None).lower())
        return runner

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=BODY_LIMIT)
        app.router.add_route("*", "/{path:.*}", self._serve)
        return app

    def _healthz_app(self) -> web.Application:
        """One word for the init system and kubeadm; nothing else is on this port."""
        app = web.Application(client_max_size=BODY_LIMIT)
        app.router.add_get("/healthz", self._healthz)
        return app

    async def _healthz(self, request: web.Request) -> web.StreamResponse:
        return await self._handlers.healthz(request, {})

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        match = routes.find(request.method, request.path)
        try:
            user = await self._admit(request, match)
        except Unknown:
            return web.Response(status=401, text="Unauthorized")
        except Refused as exc:
            return web.Response(status=403, text=str(exc))
        if match.route is None:
            return web.Response(status=404, text="404 page not found\n")
        if not match.allowed:
            return web.Response(status=405, text="405 method not allowed\n")
        if match.route.handler in _AUDITED:
            log.info(
                "request user=%r handler=%s pod=%s/%s container=%s",
                user.name,
                match.route.handler,
                match.parameters.get("namespace", ""),
                match.parameters.get("pod", ""),
                match.parameters.get("container", ""),
            )
        try:
            return await self._table[match.route.handler](request, match.parameters)
        except BadParameter as exc:
            return web.Response(status=400, text=str(exc))

    async def _admit(self, request: web.Request, match: Match) -> User:
        """Authenticate and authorize. Raises `Unknown`, `Refused`."""
        peer = request.transport.get_extra_info("peercert") if request.transport else None
        user = await self._gate.authenticate(peer, request.headers.get("Authorization", ""))
        route = match.route
        await self._gate.authorize(
            user,
            verb=route.verb(request.method) if route and match.allowed else routes.verb(request.method),
            subresources=route.subresources if route else routes.UNKNOWN_SUBRESOURCE,
            path=request.path,
        )
        return user
