"""The agent's own door: a unix socket in its root folder that answers what the node knows of its pods.

Not the kubelet port: that one asks the API server who may look and refuses everybody while it is away, which
is just when this is needed. Whoever can open a file of mode 0600 of root's is root, so nothing more is asked;
and there is nothing to change behind this door.

    GET /pods                     every pod, without timelines
    GET /pods/NAME                the pods of that name in all namespaces
    GET /pods/NAMESPACE/NAME      the pod, and while it ends the one before it of the same name
    GET /names?word=WORD          what an address, a NAME or a NAMESPACE/NAME is, here or on another node
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from aiohttp import web

from agent.explain.documents import Known, PodReport
from agent.explain.report import report
from agent.explain.situation import take
from agent.pods.manager import PodManager
from agent.probes.manager import ProbeManager
from host import unixsockets
from host.clocks import Clock

log = logging.getLogger(__name__)


class ExplainService:
    """Serves until `run` is cancelled.

    Args:
        path: of the socket.
        names: what a word names in the cluster.
    """

    def __init__(
        self,
        *,
        path: Path,
        manager: PodManager,
        probes: ProbeManager,
        clock: Clock,
        names: Callable[[str], Sequence[Known]],
    ) -> None:
        self._path = path
        self._manager = manager
        self._probes = probes
        self._clock = clock
        self._names = names

    async def run(self) -> None:
        """Listen until cancelled. Raises InputError when another agent listens there."""
        self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        sock = await asyncio.to_thread(unixsockets.listen, self._path, fix="set --root-dir")
        app = web.Application(client_max_size=1024)
        app.router.add_get("/pods", self._list)
        app.router.add_get("/pods/{name}", self._named)
        app.router.add_get("/pods/{namespace}/{name}", self._named)
        app.router.add_get("/names", self._named_things)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.SockSite(runner, sock).start()
            log.info("listening path=%s", self._path)
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()
            sock.close()
            self._path.unlink(missing_ok=True)

    async def _list(self, request: web.Request) -> web.Response:
        return _answer(self.reports(timeline=False))

    async def _named(self, request: web.Request) -> web.Response:
        where = request.match_info
        return _answer(self.reports(name=where["name"], namespace=where.get("namespace", "")))

    async def _named_things(self, request: web.Request) -> web.Response:
        return _answer(self._names(request.query.get("word", "")))

    def reports(self, *, name: str = "", namespace: str = "", timeline: bool = True) -> list[PodReport]:
        """The pods of that name and namespace (empty: any), in order of both."""
        found = [
            report(
                take(worker, manager=self._manager, probes=self._probes, clock=self._clock),
                timeline=timeline,
            )
            for worker in self._manager.workers()
            if name in ("", worker.pod.metadata.name) and namespace in ("", worker.pod.metadata.namespace)
        ]
        return sorted(found, key=lambda pod: (pod.namespace, pod.name, pod.created or 0.0))


def _answer(found: Sequence[PodReport] | Sequence[Known]) -> web.Response:
    return web.Response(body=msgspec.json.encode(found), content_type="application/json")
