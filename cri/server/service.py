"""The gRPC services: which function answers which call, and nothing else.

Every call goes through `_answer` or `_stream`, the only callers of `errors.status_of`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

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
from host.errors import InputError
from proto.cri import runtime_pb2 as pb

log = logging.getLogger(__name__)

_MOST_WORDS = 1000
"""Of an error: they travel as metadata, percent-encoded, of which gRPC takes 16 KiB."""

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


class HungUp(logging.Filter):
    """Keeps out what gRPC says, with a traceback, of an answer whose caller has hung up while it was sent.

    It is no error of anybody's: a caller may give up at any moment, and its call is idempotent.
    """

    LOGGER = "grpc._cython.cygrpc"

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record may pass."""
        return not record.getMessage().startswith("ExecuteBatchError raised in core by servicer method")


async def _refuse(context: Any, name: str, exc: Exception) -> None:
    code, words, foreseen = status_of(exc)
    if len(words) > _MOST_WORDS:
        words = f"{words[:_MOST_WORDS]}..."
    if foreseen:
        log.info("%s: %s: %s", name, code.name, words.encode("unicode_escape").decode())
    else:
        log.exception("%s failed", name)
    await context.abort(code, words)


def _read(kind: type[Message], data: bytes) -> Any:
    """A request from its bytes, which come unread from gRPC so that a bad one is refused like any other."""
    try:
        return kind.FromString(data)
    except DecodeError as exc:
        raise InputError(f"not a {kind.__name__}: {str(exc).rpartition(': ')[2]}") from exc


def _answer(core: Core, name: str, handler: Handler, kind: type[Message]) -> Any:
    async def call(data: bytes, context: Any) -> Any:
        try:
            return await handler(core, _read(kind, data))
        except Exception as exc:
            return await _refuse(context, name, exc)

    return grpc.unary_unary_rpc_method_handler(call, response_serializer=_write)


def _stream(core: Core, name: str, handler: StreamHandler, kind: type[Message]) -> Any:
    async def call(data: bytes, context: Any) -> AsyncIterator[Any]:
        try:
            messages = handler(core, _read(kind, data))
            # A client that has the headers knows that it misses no event from here on.
            await context.send_initial_metadata(())
            async for message in messages:
                yield message
        except Exception as exc:
            await _refuse(context, name, exc)

    return grpc.unary_stream_rpc_method_handler(call, response_serializer=_write)


def _write(message: Message) -> bytes:
    return message.SerializeToString()


def _not_done(name: str) -> Handler:
    async def refuse(core: Core, request: Any) -> Any:
        raise unimplemented(name)

    return refuse


def _methods(service: str, core: Core, calls: dict[str, Handler], streams: dict[str, StreamHandler]) -> Any:
    """A handler for each method of a service, a refusal for each one that is not done."""
    found: ServiceDescriptor = pb.DESCRIPTOR.services_by_name[service]
    methods = {}
    for method in found.methods:
        name, kind = method.name, GetMessageClass(method.input_type)
        if name in streams:
            methods[name] = _stream(core, name, streams[name], kind)
        else:
            methods[name] = _answer(core, name, calls.get(name) or _not_done(name), kind)
    return grpc.method_handlers_generic_handler(found.full_name, methods)


def register(core: Core, server: Any) -> None:
    """Add both CRI services to a gRPC server."""
    logging.getLogger(HungUp.LOGGER).addFilter(HungUp())
    runtime = _methods("RuntimeService", core, RUNTIME_CALLS, RUNTIME_STREAMS)
    images = _methods("ImageService", core, IMAGE_CALLS, IMAGE_STREAMS)
    server.add_generic_rpc_handlers((runtime, images))
