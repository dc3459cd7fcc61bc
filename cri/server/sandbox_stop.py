"""StopPodSandbox: containers, then network, then namespaces.

"This call is idempotent, and must not return an error if all relevant resources have already been reclaimed"
(CRI v1, StopPodSandbox).
"""

from __future__ import annotations

import msgspec

from cri.network import NetworkError
from cri.server.container_events import lose_containers, take_exits, tell
from cri.server.container_prepare import PREPARE
from cri.server.core import Core
from cri.server.sandbox_run import disconnect
from cri.state.records import SandboxState
from cri.state.store import Sandbox, UnknownId
from host.failpoints import reach
from proto.cri import runtime_pb2 as pb


async def stop_pod_sandbox(core: Core, request: pb.StopPodSandboxRequest) -> pb.StopPodSandboxResponse:
    """Stop a sandbox; a missing or stopped one is fine."""
    try:
        sandbox = core.store.sandbox(request.pod_sandbox_id)
    except UnknownId:
        return pb.StopPodSandboxResponse()
    await core.joined.run(("stop", sandbox.id), lambda: stop_sandbox(core, sandbox))
    return pb.StopPodSandboxResponse()


async def stop_sandbox(core: Core, sandbox: Sandbox) -> None:
    """Disconnect it, kill what runs in it, and release its namespaces. May be repeated after a failure.

    Raises:
        NetworkError: a CNI plugin did not do its DEL; everything else is done.
    """
    async with sandbox.lock:
        was_ready = sandbox.record.state is SandboxState.READY
        if not was_ready and (sandbox.record.network_removed or not sandbox.record.network):
            return
        failure = await _try_disconnect(core, sandbox)
        reach("sandbox_stop.disconnected")
        await core.runtime.stop_sandbox(sandbox.id)
        reach("sandbox_stop.ended")
        if was_ready:
            await core.joined.settle(PREPARE, sandbox.id)
            await take_exits(core, sandbox)
            lose_containers(core, sandbox)
            reach("sandbox_stop.exits")
            core.store.note_sandbox(sandbox, msgspec.structs.replace(sandbox.record, stopped_at=core.now()))
            tell(core, pb.CONTAINER_STOPPED_EVENT, sandbox.id, sandbox.id)
        if failure:
            raise failure


async def _try_disconnect(core: Core, sandbox: Sandbox) -> NetworkError | None:
    """A network plugin that fails or hangs must not keep the pod's processes running: its error is for later,
    and the record goes on saying that DEL is owed."""
    try:
        await disconnect(core, sandbox)
    except NetworkError as exc:
        return exc
    return None
