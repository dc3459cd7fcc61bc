"""ListPodSandbox and StreamPodSandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cri.server.core import Core
from cri.server.render import sandbox_item, select_sandboxes
from proto.cri import runtime_pb2 as pb


async def list_pod_sandbox(core: Core, request: pb.ListPodSandboxRequest) -> pb.ListPodSandboxResponse:
    """The sandboxes a filter asks for."""
    found = select_sandboxes(core.store.sandboxes.values(), request.filter)
    return pb.ListPodSandboxResponse(items=[sandbox_item(item) for item in found])


async def stream_pod_sandboxes(
    core: Core, request: pb.StreamPodSandboxesRequest
) -> AsyncIterator[pb.StreamPodSandboxesResponse]:
    """The same, one message a sandbox, so that no message outgrows gRPC's limit."""
    for item in select_sandboxes(core.store.sandboxes.values(), request.filter):
        yield pb.StreamPodSandboxesResponse(pod_sandboxes=[sandbox_item(item)])
