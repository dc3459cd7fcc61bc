"""StartContainer: the waiting process becomes the container's program."""

from __future__ import annotations

import errno
from pathlib import Path

import msgspec

from cri.runtime.errors import StartFailed
from cri.runtime.spec import ContainerExit, ContainerFacts
from cri.server.container_events import apply_exit, tell
from cri.server.container_prepare import START_FAILED_CODE, check_prepared, settled
from cri.server.core import Core
from cri.server.errors import FailedPrecondition
from cri.state.records import ContainerState
from cri.state.store import Container
from host.errors import HostError
from host.failpoints import reach
from proto.cri import runtime_pb2 as pb


async def start_container(core: Core, request: pb.StartContainerRequest) -> pb.StartContainerResponse:
    """Start a created container.

    Raises:
        UnknownId: no such container.
        FailedPrecondition: it has been started before.
        StartFailed: it could not be prepared or its program cannot run; it is then exited.
    """
    container = core.store.container(request.container_id)
    await core.joined.run(("start", container.id), lambda: _start(core, container))
    return pb.StartContainerResponse()


async def _start(core: Core, container: Container) -> None:
    await settled(core, container)
    async with container.lock:
        check_prepared(container)
        record = container.record
        if record.state is not ContainerState.CREATED:
            raise FailedPrecondition(f"container {record.id} is {record.state.value}, not created")
        # A short-lived program may end before the start is recorded: its exit waits here, so that facts and
        # events keep their order.
        core.early_exits[record.id] = None
        try:
            facts = await _execute(core, container)
            reach("container_start.executed")
        except StartFailed as exc:
            failed = ContainerExit(code=START_FAILED_CODE, finished_at=core.now(), error=str(exc))
            apply_exit(core, container, core.early_exits.pop(record.id) or failed)
            raise
        except HostError:  # whether it was started or not: an end that was told meanwhile is one
            if (how := core.early_exits[record.id]) is not None:
                apply_exit(core, container, how)
            raise
        finally:
            early = core.early_exits.pop(record.id, None)
        started = facts.started_at or core.now()
        user = user_of_process(facts.pid) if facts.pid else None
        core.store.note_container(
            container, msgspec.structs.replace(container.record, started_at=started, pid=facts.pid, user=user)
        )
        reach("container_start.recorded")
        tell(core, pb.CONTAINER_STARTED_EVENT, record.sandbox_id, record.id)
        how = early or facts.exit
        if how is not None:
            apply_exit(core, container, how)


async def _execute(core: Core, container: Container) -> ContainerFacts:
    """Start it, or learn that it was started by an earlier call whose answer did not arrive."""
    record = container.record
    try:
        return await core.runtime.start_container(record.sandbox_id, record.id)
    except HostError as exc:
        if exc.errno != errno.EALREADY:
            raise
        facts = await core.runtime.container_facts(record.sandbox_id, record.id)
        if not facts.started_at:
            raise
        return facts


def user_of_process(pid: int, *, proc: Path = Path("/proc")) -> tuple[int, int, tuple[int, ...]] | None:
    """uid, gid and groups a process runs with (proc_pid_status(5)); None when it is gone already."""
    try:
        text = (proc / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    uid, gid = (int(lines[name].split()[1]) for name in ("Uid", "Gid"))  # real, effective, saved, fs
    return uid, gid, tuple(int(word) for word in lines["Groups"].split())
