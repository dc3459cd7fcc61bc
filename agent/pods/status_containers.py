"""One container's status from its facts, and from why it does not run. Pure; part of `status`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from agent.api.structs import (
    Container,
    ContainerState,
    ContainerStateRunning,
    ContainerStateTerminated,
    ContainerStateWaiting,
    ContainerStatus,
    ContainerUser,
    LinuxContainerUser,
    Pod,
    ResourceRequirements,
    VolumeMount,
    VolumeMountStatus,
)
from agent.api.times import format_time
from agent.pods import spec
from agent.pods.facts import ContainerFact, Figures, PodFacts, State
from agent.pods.restart import wants_start

LOST = "ContainerStatusUnknown"
LOST_CODE = 137
RESTARTING_ALL = "RestartingAllContainers"
LOST_MESSAGE = "The container could not be located when the pod was terminated"


@dataclass(frozen=True, kw_only=True)
class ContainerView:
    """What the agent knows of containers besides the runtime's facts."""

    holds: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Container name → why it is not (re)started now: reason and message."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Container name → what there is to say of its start while nothing holds it."""
    started: frozenset[str] = frozenset()
    """Ids of containers that count as started."""
    ready: frozenset[str] = frozenset()
    """Ids of containers whose readiness is good."""
    stopping: bool = False
    """Whether the pod is being stopped: nothing will be started again."""
    restarting: bool = False
    """Whether all containers of the pod are being restarted."""
    again: frozenset[str] = frozenset()
    """Ids of containers that were killed in order to run again."""
    figures: Mapping[str, Figures] = field(default_factory=dict)
    """Container name → the limits it was granted."""


def container_statuses(
    pod: Pod,
    containers: Iterable[Container],
    previous: Iterable[ContainerStatus],
    facts: PodFacts,
    view: ContainerView,
    runtime_name: str,
) -> tuple[ContainerStatus, ...]:
    """A status for each container, in the order of the spec."""
    before = {status.name: status for status in previous}
    return tuple(_status(pod, c, before.get(c.name), facts, view, runtime_name) for c in containers)


def _status(
    pod: Pod,
    container: Container,
    old: ContainerStatus | None,
    facts: PodFacts,
    view: ContainerView,
    runtime_name: str,
) -> ContainerStatus:
    fact, before = facts.latest(container.name), facts.previous(container.name)
    if fact is None:
        return _absent(pod, container, old, facts, view)
    state = _state(fact, runtime_name)
    last = _state(before, runtime_name) if before is not None and before.dead else ContainerState()
    if before is None and old is not None and last.terminated is None:
        last = _kept(old, f"{runtime_name}://{fact.id}")
    hold = view.holds.get(container.name)
    restarting = fact.dead and not view.stopping and wants_start(pod, container, fact, view.again)
    if restarting and hold is not None:
        state, last = ContainerState(waiting=ContainerStateWaiting(reason=hold[0], message=hold[1])), state
    elif fact.state is State.CREATED:
        reason, message = hold or (spec.waiting_reason(pod), "")
        state = ContainerState(waiting=ContainerStateWaiting(reason=reason, message=message))
    running = fact.state is State.RUNNING
    return ContainerStatus(
        name=container.name,
        state=state,
        last_state=last,
        ready=_ready(_plain_init(pod, container), fact, view),
        restart_count=max(fact.restart_count, old.restart_count if old else 0),
        image=fact.image or container.image,
        image_id=fact.image_ref or fact.image_id,
        container_id=f"{runtime_name}://{fact.id}",
        started=running and fact.id in view.started,
        allocated_resources=container.resources.requests,
        resources=_in_force(container, fact, view),
        volume_mounts=_mounts(container),
        user=_user(fact),
        stop_signal=fact.stop_signal or None,
    )


def _user(fact: ContainerFact) -> ContainerUser | None:
    if fact.user is None:
        return None
    uid, gid, groups = fact.user
    return ContainerUser(linux=LinuxContainerUser(uid=uid, gid=gid, supplemental_groups=groups))


def _in_force(container: Container, fact: ContainerFact, view: ContainerView) -> ResourceRequirements:
    """What the container was granted, with the figures the kernel has where these are others.

    Written even when empty: a container without it is how the API server knows a node that cannot resize.
    """
    granted, now = container.resources, fact.figures
    wanted = view.figures.get(container.name)
    if fact.state is not State.RUNNING or now is None or wanted is None:
        return granted
    limits, requests = dict(granted.limits), dict(granted.requests)
    if "memory" in limits and now.memory_limit and now.memory_limit != wanted.memory_limit:
        limits["memory"] = str(now.memory_limit)
    if "cpu" in limits and now.cpu_quota and now.cpu_period and now.cpu_quota != wanted.cpu_quota:
        limits["cpu"] = f"{now.cpu_quota * 1000 // now.cpu_period}m"
    if "cpu" in requests and now.cpu_shares and now.cpu_shares != wanted.cpu_shares:
        requests["cpu"] = f"{-(-now.cpu_shares * 1000 // 1024)}m"
    return msgspec.structs.replace(granted, limits=limits, requests=requests)


def _plain_init(pod: Pod, container: Container) -> bool:
    return container in pod.spec.init_containers and not spec.is_sidecar(container)


def _ready(plain_init: bool, fact: ContainerFact, view: ContainerView) -> bool:
    """A plain init container is ready when it has succeeded, any other one while its readiness is good."""
    if plain_init:
        return fact.state is State.EXITED and fact.exit_code == 0
    return fact.state is State.RUNNING and fact.id in view.ready and fact.id in view.started


def _state(fact: ContainerFact, runtime_name: str) -> ContainerState:
    if fact.state is State.RUNNING:
        return ContainerState(running=ContainerStateRunning(started_at=format_time(fact.started_at)))
    if fact.state is State.CREATED:
        return ContainerState(waiting=ContainerStateWaiting(reason="ContainerCreating"))
    lost = fact.state is State.UNKNOWN
    return ContainerState(
        terminated=ContainerStateTerminated(
            exit_code=LOST_CODE if lost else fact.exit_code,
            reason=LOST if lost else fact.reason or ("Completed" if fact.exit_code == 0 else "Error"),
            message=LOST_MESSAGE if lost else fact.message,
            started_at=_time(fact.started_at),
            finished_at=_time(fact.finished_at),
            container_id=f"{runtime_name}://{fact.id}",
        )
    )


def _time(seconds: float) -> str | None:
    # A container that never started has the zero time, which the API writes as null.
    return format_time(seconds) if seconds > 0 else None


def _kept(old: ContainerStatus, container_id: str) -> ContainerState:
    """The last state the API still knows, when the runtime no longer holds that container."""
    if old.container_id and old.container_id != container_id and old.state.terminated is not None:
        return ContainerState(terminated=old.state.terminated)
    return ContainerState(terminated=old.last_state.terminated)


def _absent(
    pod: Pod, container: Container, old: ContainerStatus | None, facts: PodFacts, view: ContainerView
) -> ContainerStatus:
    """A container the runtime knows nothing of: not started yet, or lost with the runtime's state."""
    names = {c.name for c in pod.spec.containers}
    if view.restarting and not view.stopping and old is not None:
        return _removed_to_restart(container, old)
    if _plain_init(pod, container) and any(c.name in names for c in facts.containers):
        if old is not None and old.state.terminated is not None:
            return old
        return _initialised_before(container, old)
    if old is not None and old.state.terminated is not None:
        return old
    hold = view.holds.get(container.name)
    reason, message = hold or (spec.waiting_reason(pod), view.notes.get(container.name, ""))
    state = ContainerState(waiting=ContainerStateWaiting(reason=reason, message=message))
    last, restarts_ = ContainerState(), old.restart_count if old else 0
    if old is not None and old.state.running is not None:
        gone = ContainerStateTerminated(
            exit_code=LOST_CODE,
            reason=LOST,
            message=LOST_MESSAGE,
            started_at=old.state.running.started_at,
            container_id=old.container_id,
        )
        if view.stopping:
            state = ContainerState(terminated=gone)
        else:
            last, restarts_ = ContainerState(terminated=gone), restarts_ + 1
    elif old is not None:
        last = old.last_state
    return ContainerStatus(
        name=container.name,
        state=state,
        last_state=last,
        restart_count=restarts_,
        image=container.image,
        image_id=old.image_id if old else "",
        container_id=old.container_id if old else "",
        started=False,
        allocated_resources=container.resources.requests,
        resources=container.resources if container.resources.limits or container.resources.requests else None,
        volume_mounts=_mounts(container),
    )


def _removed_to_restart(container: Container, old: ContainerStatus) -> ContainerStatus:
    """A container that was removed so that all of the pod start anew."""
    if old.state.waiting is not None:
        return old
    text = "The container is removed because RestartAllContainers in place"
    ended = ContainerStateTerminated(exit_code=LOST_CODE, reason=RESTARTING_ALL, message=text)
    return msgspec.structs.replace(
        old,
        state=ContainerState(waiting=ContainerStateWaiting(reason=RESTARTING_ALL, message=text)),
        last_state=ContainerState(terminated=old.state.terminated or ended),
        restart_count=old.restart_count + 1,
        ready=False,
        started=False,
    )


def _initialised_before(container: Container, old: ContainerStatus | None) -> ContainerStatus:
    text = (
        "Unable to get init container status from container runtime and pod has been initialized, "
        "treat it as exited normally"
    )
    return ContainerStatus(
        name=container.name,
        state=ContainerState(
            terminated=ContainerStateTerminated(exit_code=0, reason="Completed", message=text)
        ),
        ready=True,
        restart_count=old.restart_count if old else 0,
        image=container.image,
        started=False,
        volume_mounts=_mounts(container),
    )


def _mounts(container: Container) -> tuple[VolumeMountStatus, ...]:
    return tuple(
        VolumeMountStatus(
            name=m.name,
            mount_path=m.mount_path,
            read_only=m.read_only,
            recursive_read_only=_recursive(m),
        )
        for m in container.volume_mounts
    )


def _recursive(mount: VolumeMount) -> str | None:
    """What became of recursiveReadOnly (KEP-3857). A runtime that cannot do it starts nothing."""
    if not mount.read_only:
        return None
    return "Enabled" if mount.recursive_read_only in ("Enabled", "IfPossible") else "Disabled"
