"""ListContainers and StreamContainers."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cri.server.core import Core
from cri.server.render import container_item, select_containers
from proto.cri import runtime_pb2 as pb


async def list_containers(core: Core, request: pb.ListContainersRequest) -> pb.ListContainersResponse:
    """The containers a filter asks for."""
    found = select_containers(core.store.containers.values(), request.filter)
    return pb.ListContainersResponse(containers=[container_item(item) for item in found])


async def stream_containers(
    core: Core, request: pb.StreamContainersRequest
) -> AsyncIterator[pb.StreamContainersResponse]:
    """The same, one message a container, so that no message outgrows gRPC's limit."""
    for item in select_containers(core.store.containers.values(), request.filter):
        yield pb.StreamContainersResponse(containers=[container_item(item)])
