"""ContainerStatus."""

from __future__ import annotations

import json

from cri.server.core import Core
from cri.server.render import container_status
from cri.state.records import ContainerRecord, ContainerState
from cri.state.store import UnknownId
from host.errors import NotFound
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
        details = {
            "sandboxID": record.sandbox_id,
            "pid": record.pid,
            "cgroup": record.cgroup,
            "droppedLogBytes": await _dropped_log_bytes(core, record),
        }
        response.info["info"] = json.dumps(details)
    return response


async def _dropped_log_bytes(core: Core, record: ContainerRecord) -> int | None:
    """What a full disk has cost the log so far; None once the pod's supervisor, who counts, is gone."""
    try:
        return (await core.runtime.container_facts(record.sandbox_id, record.id)).dropped_log_bytes
    except NotFound:
        return None
