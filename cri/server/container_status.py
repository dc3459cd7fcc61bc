"""ContainerStatus."""

from __future__ import annotations

import json

from cri.server.core import Core
from cri.server.render import container_status
from cri.state.records import ContainerState
from cri.state.store import UnknownId
from proto.cri import runtime_pb2 as pb


async def get_container_status(core: Core, request: pb.ContainerStatusRequest) -> pb.ContainerStatusResponse:
    """The status of a container. The verbose part holds no environment: that is where secrets are.

    Raises:
        UnknownId: no such container.
    """
    container = core.store.container(request.container_id)
    record = container.record
    if record.state is ContainerState.MAKING:
        raise UnknownId(f"container {request.container_id[:80]!r} not found: it is still being made")
    response = pb.ContainerStatusResponse(status=container_status(container))
    if request.verbose:
        details = {"sandboxID": record.sandbox_id, "pid": record.pid, "cgroup": record.cgroup}
        response.info["info"] = json.dumps(details)
    return response
