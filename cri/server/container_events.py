"""GetContainerEvents, and the runtime's events turned into facts.

A container's exit changes its record first and is told to the kubelet after. Events about a sandbox itself
carry its id as the container id, as containerd has them (the kubelet counts on it).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import msgspec

from cri.runtime.spec import ContainerExit, Event, SandboxFacts
from cri.server.core import Core
from cri.server.render import container_status, sandbox_status
from cri.state.records import ContainerState, SandboxState, exited
from cri.state.store import Container, Sandbox
from host.errors import NotFound
from proto.cri import runtime_pb2 as pb

log = logging.getLogger(__name__)

_LOST = "the pod's supervisor has died"
_LOST_CODE = 137


def get_container_events(
    core: Core, request: pb.GetEventsRequest
) -> AsyncIterator[pb.ContainerEventResponse]:
    """Stream every event from now on."""
    return core.events.subscribe()


def tell(core: Core, kind: int, sandbox_id: str, container_id: str) -> None:
    """Publish an event with the present status of the pod and all its containers."""
    if not core.events.listening:
        return
    event = pb.ContainerEventResponse(
        container_id=container_id,
        container_event_type=kind,  # type: ignore[arg-type]
        created_at=core.now(),
    )
    sandbox = core.store.sandboxes.get(sandbox_id)
    if sandbox is not None:
        event.pod_sandbox_status.CopyFrom(sandbox_status(sandbox))
    event.containers_statuses.extend(
        container_status(item)
        for item in core.store.containers_of(sandbox_id)
        if item.record.state is not ContainerState.MAKING
    )
    core.events.publish(event)


def apply_exit(core: Core, container: Container, how: ContainerExit) -> None:
    """Record a container's end and tell it; a second report of the same end changes nothing."""
    if container.record.finished_at:
        return
    record = exited(
        container.record,
        at=how.finished_at or core.now(),
        code=how.code,
        oom=how.oom_killed,
        message=how.error,
    )
    if how.error and not record.started_at:
        record = msgspec.structs.replace(record, reason="StartError")
    core.store.note_container(container, record)
    tell(core, pb.CONTAINER_STOPPED_EVENT, record.sandbox_id, record.id)


def lose_containers(core: Core, sandbox: Sandbox) -> None:
    """Give every container of a dead sandbox an end that has none."""
    for container in core.store.containers_of(sandbox.id):
        if container.record.state in (ContainerState.CREATED, ContainerState.RUNNING):
            record = msgspec.structs.replace(
                container.record,
                finished_at=core.now(),
                exit_code=_LOST_CODE,
                reason="Unknown",
                message=_LOST,
            )
            core.store.note_container(container, record)
            tell(core, pb.CONTAINER_STOPPED_EVENT, sandbox.id, container.id)


def lose_sandbox(core: Core, sandbox: Sandbox) -> None:
    """Record that a sandbox's supervisor is gone, and with it every container it had."""
    lose_containers(core, sandbox)
    if sandbox.record.state is SandboxState.READY:
        core.store.note_sandbox(sandbox, msgspec.structs.replace(sandbox.record, stopped_at=core.now()))
        tell(core, pb.CONTAINER_STOPPED_EVENT, sandbox.id, sandbox.id)


async def take_exits(core: Core, sandbox: Sandbox) -> SandboxFacts | None:
    """Take over the starts and exits the supervisor has on disk; what it says, or None when it is dead."""
    try:
        facts = await core.runtime.attach_sandbox(sandbox.id)
    except NotFound:
        return None
    for found in facts.containers:
        container = core.store.containers.get(found.id)
        if container is None:
            log.warning("removing container %s of sandbox %s, which has no record", found.id, sandbox.id)
            await core.runtime.remove_container(sandbox.id, found.id)
            continue
        if container.record.finished_at:
            continue
        if found.started_at and not container.record.started_at:
            record = msgspec.structs.replace(container.record, started_at=found.started_at, pid=found.pid)
            core.store.note_container(container, record)
        if found.exit is not None:
            apply_exit(core, container, found.exit)
    return facts if facts.alive else None


async def follow_runtime(core: Core) -> None:
    """Apply the runtime's events for as long as the daemon runs."""
    async for event in core.runtime.events():
        _apply(core, event)


def _apply(core: Core, event: Event) -> None:
    if event.kind == "sandbox-lost":
        sandbox = core.store.sandboxes.get(event.sandbox_id)
        if sandbox is not None and sandbox.record.state is SandboxState.READY:
            log.warning("supervisor of sandbox %s has died", sandbox.id)
            lose_sandbox(core, sandbox)
        return
    container = core.store.containers.get(event.container_id)
    if event.kind != "exited" or container is None or event.exit is None:
        return
    if container.id in core.early_exits:
        core.early_exits[container.id] = event.exit
    else:
        apply_exit(core, container, event.exit)
