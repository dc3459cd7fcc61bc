"""ExecSync: a command in a container, its output and its exit code in one answer (exec probes live on it)."""

from __future__ import annotations

from cri.server.core import Core
from cri.server.errors import FailedPrecondition
from cri.state.records import ContainerState
from cri.state.store import Container
from host.errors import InputError
from proto.cri import runtime_pb2 as pb

OUTPUT_LIMIT = 16 << 20  # bytes a stream; what is beyond is read and thrown away (CVE-2022-31030)


def running(core: Core, container_id: str) -> Container:
    """The container with this id, if it runs.

    Raises:
        UnknownId: there is none.
        FailedPrecondition: it does not run.
    """
    container = core.store.container(container_id)
    state = container.record.state
    if state is not ContainerState.RUNNING:
        raise FailedPrecondition(f"container {container.id} is {state.value}, not running")
    return container


async def exec_sync(core: Core, request: pb.ExecSyncRequest) -> pb.ExecSyncResponse:
    """Run a command to its end.

    Raises:
        InputError: no command, or a negative time.
        TimedOut: after `timeout` seconds (0: none); the command and what it started are killed.
        StartFailed: the program cannot be executed.
    """
    if not request.cmd:
        raise InputError("cmd is empty")
    if request.timeout < 0:
        raise InputError(f"timeout {request.timeout} is negative")
    container = running(core, request.container_id)
    result = await core.runtime.exec_sync(
        container.record.sandbox_id,
        container.id,
        tuple(request.cmd),
        timeout=float(request.timeout) or None,
        limit=OUTPUT_LIMIT,
    )
    return pb.ExecSyncResponse(stdout=result.stdout, stderr=result.stderr, exit_code=result.code)
