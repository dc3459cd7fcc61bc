"""ReopenContainerLog: the kubelet has renamed the log, the next line goes to a new file of the old name."""

from __future__ import annotations

from cri.server.container_exec_sync import running
from cri.server.core import Core
from proto.cri import runtime_pb2 as pb


async def reopen_container_log(
    core: Core, request: pb.ReopenContainerLogRequest
) -> pb.ReopenContainerLogResponse:
    """Reopen the log of a running container.

    Raises:
        UnknownId, FailedPrecondition: no running container of this id.
    """
    container = running(core, request.container_id)
    await core.runtime.reopen_log(container.record.sandbox_id, container.id)
    return pb.ReopenContainerLogResponse()
