"""What each route of the kubelet API answers. Authentication and authorization have happened before.

Small readers of the pods' and the runtime's facts; streams are handed to `streams`, logs to `logfiles`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from aiohttp import web

from agent.api.meta import JSON
from agent.api.structs import ContainerStatus, Pod
from agent.api.times import parse_time
from agent.server import exposition, parameters, usage
from agent.server.logfiles import LogReader
from agent.server.ports import Pods, Streams
from agent.server.streams import StreamError, pass_through
from agent.server.usage import ContainerReading, Reading
from host.errors import HostError

log = logging.getLogger(__name__)
Handler = Callable[[web.Request, Mapping[str, str]], Awaitable[web.StreamResponse]]
RUN_TIMEOUT = 600.0


class Handlers:
    """One method a route; `table()` gives them by the names that `routes` uses.

    Args:
        config: body of /configz.
        runtime_failures: exception types of `streams` that mean "the runtime refused".
        check: returns a reason when the agent is not healthy, else "".
        families: further metrics for /metrics.
    """

    def __init__(
        self,
        *,
        node_name: str,
        pods: Pods,
        streams: Streams,
        runtime_failures: tuple[type[Exception], ...],
        root: Path,
        config: JSON,
        check: Callable[[], str] = str,
        families: Callable[[], Sequence[exposition.Family]] = tuple,
    ) -> None:
        self._node = node_name
        self._pods = pods
        self._streams = streams
        self._failures = runtime_failures
        self._root = root
        self._config = config
        self._check = check
        self._families = families

    def table(self) -> dict[str, Handler]:
        """Handlers by name."""
        names = (
            "healthz pods running_pods configz metrics metrics_resource metrics_cadvisor"
            " stats_summary container_logs exec attach port_forward run"
        )
        return {name: getattr(self, name) for name in names.split()}

    async def healthz(self, request: web.Request, parameters: Mapping[str, str]) -> web.Response:
        """ "ok", or 500 with the reason."""
        reason = self._check()
        return web.Response(status=500 if reason else 200, text=reason or "ok")

    async def pods(self, request: web.Request, parameters: Mapping[str, str]) -> web.Response:
        """A v1 PodList of everything on this node."""
        return _json(_pod_list(self._pods.pods()))

    async def running_pods(self, request: web.Request, parameters: Mapping[str, str]) -> web.Response:
        """A v1 PodList of the pods that have a running container."""
        running = [pod for pod in self._pods.pods() if any(map(_is_running, _statuses(pod)))]
        return _json(_pod_list(running))

    async def configz(self, request: web.Request, parameters: Mapping[str, str]) -> web.Response:
        """The configuration in force."""
        return _json({"kubeletconfig": self._config})

    async def metrics(self, request: web.Request, parameters: Mapping[str, str]) -> web.Response:
        """Figures of this process and its parts."""
        pods = self._pods.pods()
        running = sum(1 for pod in pods if pod.status.phase == "Running")
        families = (
            *_process_families(),
            exposition.Family(
                "kubelet_running_pods", "gauge", "Pods in phase Running", (exposition.Sample(running),)
            ),
            exposition.Family(
                "kubelet_node_name",
                "gauge",
                "The node's name. The count is always 1.",
                (exposition.Sample(1, {"node": self._node}),),
            ),
            *self._families(),
        )
        return _text(exposition.render(families))

    async def metrics_resource(self, request: web.Request, parameters: Mapping[str, str]) -> web.Response:
        """CPU and memory for metrics-server."""
        node, containers, error = await self._usage()
        return _text(exposition.render(usage.resource_metrics(node, containers, error=error)))

    async def metrics_cadvisor(self, request: web.Request, parameters: Mapping[str, str]) -> web.Response:
        """The container figures that dashboards use, under cAdvisor's names."""
        _, containers, _ = await self._usage()
        return _text(exposition.render(usage.cadvisor_metrics(containers, self._pods.pods())))

    async def stats_summary(self, request: web.Request, parameters: Mapping[str, str]) -> web.Response:
        """The Summary API, CPU, memory and file system."""
        node, containers, _ = await self._usage()
        disk = os.statvfs(self._root)
        filesystem = {
            "availableBytes": disk.f_bavail * disk.f_frsize,
            "capacityBytes": disk.f_blocks * disk.f_frsize,
            "usedBytes": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
            "inodesFree": disk.f_favail,
            "inodes": disk.f_files,
            "inodesUsed": disk.f_files - disk.f_ffree,
        }
        return _json(usage.summary(self._node, node, containers, filesystem=filesystem))

    async def _usage(self) -> tuple[Reading, list[ContainerReading], bool]:
        node = usage.read_node(time.time())
        try:
            stats = await self._streams.container_stats()
        except self._failures as exc:
            log.warning("container statistics not available error=%s", exc)
            return node, [], True
        started = {
            status.container_id.partition("://")[2]: parse_time(status.state.running.started_at)
            for pod in self._pods.pods()
            for status in _statuses(pod)
            if status.state.running is not None
        }
        return node, [usage.from_cri(item, started.get(item.attributes.id) or 0.0) for item in stats], False

    async def container_logs(self, request: web.Request, where: Mapping[str, str]) -> web.StreamResponse:
        """A container's log, perhaps followed."""
        options, previous = parameters.log_options(request.query, now=time.time())
        pod = self._find(where)
        name = where["container"]
        if name not in {status.name for status in _statuses(pod)} | set(_container_names(pod)):
            text = f"container {name} is not valid for pod {pod.metadata.name}"
            raise web.HTTPBadRequest(text=text)
        namespace = pod.metadata.namespace
        path = self._pods.log_path(namespace, pod.metadata.name, name, previous=previous)
        if path is None:
            which = "previous terminated container" if previous else "container"
            text = f"{which} {name!r} in pod {pod.metadata.name!r} is waiting to start or not found"
            raise web.HTTPBadRequest(text=text)
        container_id = self._pods.container_id(namespace, pod.metadata.name, name, previous=previous)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})

        async def write(data: bytes) -> None:
            if not response.prepared:
                await response.prepare(request)
            await response.write(data)

        def running() -> bool:
            return not previous and self._runs(pod, name, container_id)

        if options.follow:
            await response.prepare(request)
        try:
            await LogReader(Path(path), options=options, running=running, write=write).run()
        except HostError as exc:
            if not response.prepared:
                raise web.HTTPInternalServerError(text=f"failed to open log file: {exc}") from exc
            log.warning("log stream ended path=%s error=%s", path, exc)
        if not response.prepared:
            await response.prepare(request)
        await response.write_eof()
        return response

    def _runs(self, pod: Pod, container: str, container_id: str | None) -> bool:
        """Whether that very container still runs."""
        meta = pod.metadata
        now = self._pods.find(meta.namespace, meta.name, meta.uid)
        if now is None or self._pods.container_id(meta.namespace, meta.name, container) != container_id:
            return False
        return any(status.name == container and _is_running(status) for status in _statuses(now))

    async def exec(self, request: web.Request, where: Mapping[str, str]) -> web.StreamResponse:
        """A command in a container, as a stream."""
        options = parameters.stream_options(request.query, request.query.getall("command", []))
        if not options.command:
            raise web.HTTPBadRequest(text="you must specify at least one command for the container")
        container_id = self._container(where)
        asking = self._streams.exec_url(
            container_id,
            options.command,
            tty=options.tty,
            stdin=options.stdin,
            stdout=options.stdout,
            stderr=options.stderr,
        )
        return await self._stream(request, asking)

    async def attach(self, request: web.Request, where: Mapping[str, str]) -> web.StreamResponse:
        """A container's own streams."""
        options = parameters.stream_options(request.query, ())
        asking = self._streams.attach_url(
            self._container(where),
            tty=options.tty,
            stdin=options.stdin,
            stdout=options.stdout,
            stderr=options.stderr,
        )
        return await self._stream(request, asking)

    async def port_forward(self, request: web.Request, where: Mapping[str, str]) -> web.StreamResponse:
        """Connections into a pod's network."""
        pod = self._find(where)
        sandbox = self._pods.sandbox_id(pod.metadata.namespace, pod.metadata.name)
        if sandbox is None:
            raise web.HTTPNotFound(text=f"pod {pod.metadata.name} has no running sandbox")
        wanted = parameters.ports(request.query.getall("port", []) + request.query.getall("ports", []))
        return await self._stream(request, self._streams.port_forward_url(sandbox, wanted))

    async def run(self, request: web.Request, where: Mapping[str, str]) -> web.StreamResponse:
        """A command's output, without streams."""
        command = request.query.get("cmd", "").split(" ")
        if not any(command):
            raise web.HTTPBadRequest(text="parameter cmd is missing")
        try:
            done = await self._streams.exec_sync(self._container(where), command, timeout=RUN_TIMEOUT)
        except self._failures as exc:
            raise web.HTTPInternalServerError(text=str(exc)) from exc
        return web.Response(status=500 if done.exit_code else 200, body=done.stdout + done.stderr)

    async def _stream(self, request: web.Request, asking: Awaitable[str]) -> web.StreamResponse:
        """Ask the runtime for an address, then pass the connection through."""
        try:
            url = await asking
        except self._failures as exc:
            raise web.HTTPInternalServerError(text=str(exc)) from exc
        try:
            await pass_through(request, url)
        except StreamError as exc:
            log.warning("stream refused path=%r error=%s", request.path, exc)
            return web.Response(status=exc.status, text=str(exc))
        return web.Response()

    def _find(self, where: Mapping[str, str]) -> Pod:
        pod = self._pods.find(where["namespace"], where["pod"], where.get("uid"))
        if pod is None:
            raise web.HTTPNotFound(text=f"pod {where['pod']}_{where['namespace']} does not exist")
        return pod

    def _container(self, where: Mapping[str, str]) -> str:
        pod = self._find(where)
        name = where["container"]
        found = self._pods.container_id(pod.metadata.namespace, pod.metadata.name, name)
        if found is None:
            raise web.HTTPNotFound(text=f"container not found ({name!r})")
        return found


def _statuses(pod: Pod) -> tuple[ContainerStatus, ...]:
    status = pod.status
    return (
        *status.init_container_statuses,
        *status.container_statuses,
        *status.ephemeral_container_statuses,
    )


def _container_names(pod: Pod) -> list[str]:
    spec = pod.spec
    return [item.name for item in (*spec.init_containers, *spec.containers, *spec.ephemeral_containers)]


def _is_running(status: ContainerStatus) -> bool:
    return status.state.running is not None


def _pod_list(pods: Sequence[Pod]) -> JSON:
    return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods}


def _json(body: JSON) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def _text(body: str) -> web.Response:
    return web.Response(body=body.encode(), headers={"Content-Type": exposition.CONTENT_TYPE})


def _process_families() -> tuple[exposition.Family, ...]:
    spent = os.times()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    sample = exposition.Sample
    return (
        exposition.Family(
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            (sample(spent.user + spent.system),),
        ),
        exposition.Family(
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory size in bytes.",
            (sample(resident),),
        ),
        exposition.Family(
            "nodelet_asyncio_tasks",
            "gauge",
            "Tasks on the event loop.",
            (sample(len(asyncio.all_tasks())),),
        ),
    )
