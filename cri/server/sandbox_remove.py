"""RemovePodSandbox: the sandbox with everything it has.

"This call is idempotent, and must not return an error if the pod sandbox has already been removed" (CRI v1).
"""

from __future__ import annotations

from cri.server.container_create import DELETE_LAYER
from cri.server.container_events import tell
from cri.server.container_remove import remove
from cri.server.core import Core
from cri.server.sandbox_stop import stop_sandbox
from cri.state.store import Sandbox, UnknownId
from host.failpoints import reach
from proto.cri import runtime_pb2 as pb


async def remove_pod_sandbox(core: Core, request: pb.RemovePodSandboxRequest) -> pb.RemovePodSandboxResponse:
    """Remove a sandbox, its containers first; a running one is stopped by force, a missing one is fine."""
    try:
        sandbox = core.store.sandbox(request.pod_sandbox_id)
    except UnknownId:
        return pb.RemovePodSandboxResponse()
    await core.joined.run(("remove", sandbox.id), lambda: remove_sandbox(core, sandbox))
    return pb.RemovePodSandboxResponse()


async def remove_sandbox(core: Core, sandbox: Sandbox) -> None:
    """Stop, remove the containers, remove the sandbox. May be repeated after a failure."""
    await stop_sandbox(core, sandbox)
    reach("sandbox_remove.stopped")
    for container in core.store.containers_of(sandbox.id):
        await remove(core, container)
    reach("sandbox_remove.containers")
    async with sandbox.lock:
        await core.runtime.remove_sandbox(sandbox.id)
        reach("sandbox_remove.runtime")
        await core.joined.settle(DELETE_LAYER, sandbox.id)
        tell(core, pb.CONTAINER_DELETED_EVENT, sandbox.id, sandbox.id)
        core.store.drop_sandbox(sandbox.id)
