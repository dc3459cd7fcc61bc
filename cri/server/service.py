"""The gRPC services: which function answers which call, and nothing else.

Every call goes through `_answer` or `_stream`, the only callers of `errors.status_of`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from cri.server import (
    container_create,
    container_events,
    container_exec_sync,
    container_list,
    container_log_reopen,
    container_remove,
    container_start,
    container_stats,
    container_status,
    container_stop,
    container_streams,
    container_update_resources,
    image_service,
    runtime_status,
    sandbox_list,
    sandbox_metrics,
    sandbox_remove,
    sandbox_run,
    sandbox_stats,
    sandbox_status,
    sandbox_stop,
    sandbox_update_resources,
)
from cri.server.core import Core
from cri.server.errors import status_of, unimplemented
from proto.cri import runtime_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

Handler = Callable[[Core, Any], Awaitable[Any]]
StreamHandler = Callable[[Core, Any], AsyncIterator[Any]]

RUNTIME_CALLS: dict[str, Handler] = {
    "Version": runtime_status.get_version,
    "Status": runtime_status.get_status,
    "RuntimeConfig": runtime_status.get_runtime_config,
    "UpdateRuntimeConfig": runtime_status.update_runtime_config,
    "RunPodSandbox": sandbox_run.run_pod_sandbox,
    "StopPodSandbox": sandbox_stop.stop_pod_sandbox,
    "RemovePodSandbox": sandbox_remove.remove_pod_sandbox,
    "PodSandboxStatus": sandbox_status.pod_sandbox_status,
    "ListPodSandbox": sandbox_list.list_pod_sandbox,
    "PodSandboxStats": sandbox_stats.pod_sandbox_stats,
    "ListPodSandboxStats": sandbox_stats.list_pod_sandbox_stats,
    "UpdatePodSandboxResources": sandbox_update_resources.update_pod_sandbox_resources,
    "CreateContainer": container_create.create_container,
    "StartContainer": container_start.start_container,
    "StopContainer": container_stop.stop_container,
    "RemoveContainer": container_remove.remove_container,
    "ListContainers": container_list.list_containers,
    "ContainerStatus": container_status.get_container_status,
    "UpdateContainerResources": container_update_resources.update_container_resources,
    "ReopenContainerLog": container_log_reopen.reopen_container_log,
    "ExecSync": container_exec_sync.exec_sync,
    "Exec": container_streams.exec_stream,
    "Attach": container_streams.attach_stream,
    "PortForward": container_streams.port_forward_stream,
    "ListMetricDescriptors": sandbox_metrics.list_metric_descriptors,
    "ListPodSandboxMetrics": sandbox_metrics.list_pod_sandbox_metrics,
    "ContainerStats": container_stats.container_stats,
    "ListContainerStats": container_stats.list_container_stats,
}
RUNTIME_STREAMS: dict[str, StreamHandler] = {
    "GetContainerEvents": container_events.get_container_events,
    "StreamPodSandboxes": sandbox_list.stream_pod_sandboxes,
    "StreamPodSandboxStats": sandbox_stats.stream_pod_sandbox_stats,
    "StreamPodSandboxMetrics": sandbox_metrics.stream_pod_sandbox_metrics,
    "StreamContainers": container_list.stream_containers,
    "StreamContainerStats": container_stats.stream_container_stats,
}
IMAGE_CALLS: dict[str, Handler] = {
    "ListImages": image_service.list_images,
    "ImageStatus": image_service.image_status,
    "PullImage": image_service.pull_image,
    "RemoveImage": image_service.remove_image,
    "ImageFsInfo": image_service.image_fs_info,
}
IMAGE_STREAMS: dict[str, StreamHandler] = {"StreamImages": image_service.stream_images}


async def _refuse(context: Any, name: str, exc: Exception) -> None:
    code, words, foreseen = status_of(exc)
    if foreseen:
        log.info("%s: %s: %s", name, code.name, words.encode("unicode_escape").decode())
    else:
        log.exception("%s failed", name)
    await context.abort(code, words)


def _answer(core: Core, name: str, handler: Handler) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: Any) -> Any:
        try:
            return await handler(core, request)
        except Exception as exc:
            return await _refuse(context, name, exc)

    return call


def _stream(core: Core, name: str, handler: StreamHandler) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            messages = handler(core, request)
            # A client that has the headers knows that it misses no event from here on.
            await context.send_initial_metadata(())
            async for message in messages:
                yield message
        except Exception as exc:
            await _refuse(context, name, exc)

    return call


def _fill(servicer: Any, core: Core, calls: dict[str, Handler], streams: dict[str, StreamHandler]) -> Any:
    """Put the calls on a generated servicer, and a refusal for each one that is not done."""
    for name in (name for name in vars(type(servicer)) if name[0].isupper()):
        if name in streams:
            setattr(servicer, name, _stream(core, name, streams[name]))
        else:
            setattr(servicer, name, _answer(core, name, calls.get(name) or _not_done(name)))
    return servicer


def _not_done(name: str) -> Handler:
    async def refuse(core: Core, request: Any) -> Any:
        raise unimplemented(name)

    return refuse


def register(core: Core, server: Any) -> None:
    """Add both CRI services to a gRPC server."""
    runtime = _fill(pb_grpc.RuntimeServiceServicer(), core, RUNTIME_CALLS, RUNTIME_STREAMS)
    images = _fill(pb_grpc.ImageServiceServicer(), core, IMAGE_CALLS, IMAGE_STREAMS)
    pb_grpc.add_RuntimeServiceServicer_to_server(runtime, server)
    pb_grpc.add_ImageServiceServicer_to_server(images, server)
