"""RemoveContainer: by force when it still runs. Logs stay; they are the kubelet's.

"This call is idempotent, and must not return an error if the container has already been removed" (CRI v1).
"""

from __future__ import annotations

from contextlib import suppress

from cri.server.container_create import undo_container
from cri.server.container_events import tell
from cri.server.container_prepare import settled
from cri.server.container_stop import stop
from cri.server.core import Core
from cri.state.store import Container, UnknownId
from host.failpoints import reach
from proto.cri import runtime_pb2 as pb


async def remove_container(core: Core, request: pb.RemoveContainerRequest) -> pb.RemoveContainerResponse:
    """Remove a container; a missing one is fine."""
    with suppress(UnknownId):
        await remove(core, core.store.container(request.container_id))
    return pb.RemoveContainerResponse()


async def remove(core: Core, container: Container) -> None:
    """Stop and remove; a second caller joins the first."""
    await core.joined.run(("remove", container.id), lambda: _remove(core, container))


async def _remove(core: Core, container: Container) -> None:
    await settled(core, container)
    await stop(core, container, timeout=0)
    reach("container_remove.stopped")
    async with container.lock:
        sandbox_id = container.record.sandbox_id
        await undo_container(core, container)
        tell(core, pb.CONTAINER_DELETED_EVENT, sandbox_id, container.id)
