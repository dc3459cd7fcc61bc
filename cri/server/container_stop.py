"""StopContainer: the stop signal, time to end, then SIGKILL for everything that is left.

"This call is idempotent, and must not return an error if the container has already been stopped" (CRI v1).
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress

from cri.runtime.spec import ContainerExit
from cri.server.container_events import apply_exit
from cri.server.core import Core
from cri.state.records import ContainerState
from cri.state.store import Container, UnknownId
from host.errors import InputError, NotFound, TimedOut
from host.failpoints import reach
from proto.cri import runtime_pb2 as pb

_RECORD_SECONDS = 10.0


async def stop_container(core: Core, request: pb.StopContainerRequest) -> pb.StopContainerResponse:
    """Stop a container within `timeout` seconds; a missing or ended one is fine.

    Raises:
        InputError: a negative timeout.
        TimedOut: it survives SIGKILL (a process stuck in the kernel); the message names what does.
    """
    if request.timeout < 0:
        raise InputError(f"timeout {request.timeout} is negative")
    with suppress(UnknownId):
        await stop(core, core.store.container(request.container_id), timeout=request.timeout)
    return pb.StopContainerResponse()


async def stop(core: Core, container: Container, *, timeout: float) -> None:
    """Stop a running container; returns when its exit is on disk.

    No lock is held while waiting: a second call with a shorter time must be able to cut the first one short.
    """
    record = container.record
    if record.state is not ContainerState.RUNNING:
        return
    if timeout > 0:
        # The time is for the request to the supervisor as well, which may be stuck.
        with suppress(NotFound, TimeoutError):
            async with asyncio.timeout(timeout):
                await core.runtime.signal_container(record.sandbox_id, record.id, record.stop_signal)
                reach("container_stop.signalled")
                await container.ended.wait()
    if container.ended.is_set():
        return
    try:
        await core.runtime.kill_container(record.sandbox_id, record.id)
    except NotFound as exc:
        apply_exit(core, container, ContainerExit(code=137, finished_at=core.now(), error=str(exc)))
    reach("container_stop.killed")
    try:
        await asyncio.wait_for(container.ended.wait(), _RECORD_SECONDS)
    except TimeoutError as exc:
        raise TimedOut(
            errno.ETIMEDOUT, f"end of container {record.id}", "it is killed, not recorded"
        ) from exc
