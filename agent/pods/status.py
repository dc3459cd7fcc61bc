"""A pod's status from its spec, its facts and the status before: a pure function.

Rules it keeps: a terminal phase never changes back; a restart count never falls; conditions that others own
stay as they are; a transition time changes only with the condition's status. The texts are kubelet's,
because people and controllers match on them.

Source: k8s.io/kubernetes pkg/kubelet/status/generate.go and pkg/kubelet/kubelet_pods.go (getPhase), v1.37.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from agent.api.structs import Condition, ContainerStatus, Pod, PodIP, PodStatus
from agent.api.times import format_time
from agent.pods import spec
from agent.pods.facts import PodFacts
from agent.pods.restart import may_restart_all, restarts
from agent.pods.status_containers import ContainerView, container_statuses
from agent.pods.status_resize import IN_PROGRESS, PENDING, ResizeDraft
from agent.resources.qos import qos_class

OWN_CONDITIONS = (
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "DisruptionTarget",
    "AllContainersRestarting",
    PENDING,
    IN_PROGRESS,
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A decision about the whole pod that facts do not show: rejected, evicted, over its deadline."""

    reason: str
    message: str
    disruption: bool = False
    """Whether it was ended for the node's sake (condition DisruptionTarget)."""
    grace: int | None = None
    """Seconds the pod gets at most; None: what it asks for."""


@dataclass(frozen=True, kw_only=True)
class StatusInput:
    """What the status is computed from. Times are Unix seconds."""

    now: float
    facts: PodFacts
    previous: PodStatus
    """The last status we computed, at first the API's."""
    runtime_name: str = "nodelet-cri"
    host_ips: tuple[str, ...] = ()
    containers: ContainerView = field(default_factory=ContainerView)
    verdict: Verdict | None = None
    resize: tuple[ResizeDraft, ...] = ()
    over: bool = False
    """Whether nothing of it runs and nothing will be started again (deleted, or ended)."""


def pod_status(pod: Pod, given: StatusInput) -> PodStatus:
    """The status to report now."""
    old = given.previous
    views = (given.facts, given.containers, given.runtime_name)
    init = container_statuses(pod, pod.spec.init_containers, old.init_container_statuses, *views)
    apps = container_statuses(pod, pod.spec.containers, old.container_statuses, *views)
    extra = container_statuses(pod, pod.spec.ephemeral_containers, old.ephemeral_container_statuses, *views)
    phase = _phase(pod, init, apps, given)
    if phase == "Pending" and old.phase == "Running" and may_restart_all(pod):
        phase = "Running"  # its containers start anew, the pod does not
    verdict = given.verdict if given.over else None
    if given.verdict is not None:
        # Not before nothing runs any more, or its successor would find the node still full.
        phase = "Failed" if given.over else old.phase or "Pending"
    terminal = next((p for p in (pod.status.phase, old.phase) if p in ("Failed", "Succeeded")), "")
    if verdict is None or terminal:
        phase = terminal or phase
    reason, message = ("", "") if phase != old.phase else (old.reason, old.message)
    if verdict is not None:
        reason, message = verdict.reason, verdict.message
    if phase in ("Failed", "Succeeded"):
        init, apps = (_unready(init), _unready(apps))
    conditions = _conditions(pod, given, init, apps, phase)
    ips = _addresses(pod, given)
    return PodStatus(
        observed_generation=pod.metadata.generation,
        phase=phase,
        reason=reason,
        message=message,
        conditions=conditions,
        host_ip=given.host_ips[0] if given.host_ips else old.host_ip,
        host_ips=tuple(PodIP(ip=ip) for ip in given.host_ips) or old.host_ips,
        pod_ip=ips[0] if ips else "",
        pod_ips=tuple(PodIP(ip=ip) for ip in ips),
        start_time=old.start_time or format_time(given.now),
        init_container_statuses=init,
        container_statuses=apps,
        ephemeral_container_statuses=extra,
        qos_class=pod.status.qos_class or qos_class(pod),
        allocated_resources=pod.spec.resources.requests if pod.spec.resources else {},
        resources=pod.spec.resources,
    )


def _addresses(pod: Pod, given: StatusInput) -> tuple[str, ...]:
    if pod.spec.host_network:
        return given.host_ips
    box = given.facts.sandbox
    if box is not None and box.ips:
        return box.ips
    return tuple(ip.ip for ip in given.previous.pod_ips) if given.over else ()


def _unready(statuses: tuple[ContainerStatus, ...]) -> tuple[ContainerStatus, ...]:
    """Statuses of a pod in a terminal phase: whatever still runs is no longer ready; init results stay."""
    return tuple(
        msgspec.structs.replace(s, ready=False) if s.ready and s.state.terminated is None else s
        for s in statuses
    )


# --- phase ------------------------------------------------------------------------------------------------


def _phase(
    pod: Pod, init: tuple[ContainerStatus, ...], apps: tuple[ContainerStatus, ...], given: StatusInput
) -> str:
    pending_init, failed_init = _init_progress(pod, init)
    if failed_init:
        return "Failed"
    begun = any(s.state.running or s.state.terminated or s.last_state.terminated for s in apps)
    side = [s for s, c in zip(init, pod.spec.init_containers, strict=True) if spec.is_sidecar(c)]
    side_pending = any(
        not s.state.terminated and not s.last_state.terminated and not (s.state.running and s.started)
        for s in side
    )
    side_waiting = any(s.state.waiting and not s.last_state.terminated for s in side)
    waiting = any(not s.state.running and not _ended(s) for s in apps)
    if pending_init or (side_pending and not begun) or waiting or side_waiting:
        # A pod that was stopped before all of it had started has failed (KEP-3329).
        return "Failed" if given.over else "Pending"
    if any(s.state.running for s in (*side, *apps)):
        return "Running"
    if not apps:
        return "Pending"
    if given.over and not spec.is_static(pod):
        return _ending(apps)
    again = any(
        s.state.waiting is not None  # it is being made anew, whatever the run before came to
        or restarts(pod, c, _exit_code(s))
        or s.container_id.rpartition("//")[2] in given.containers.again
        for s, c in zip(apps, pod.spec.containers, strict=True)
    )
    return "Running" if again else _ending(apps)


def _init_progress(pod: Pod, init: tuple[ContainerStatus, ...]) -> tuple[bool, bool]:
    """Whether a plain init container has yet to run to its end, and whether one failed for good."""
    pending = failed = False
    for container, status in zip(pod.spec.init_containers, init, strict=True):
        if spec.is_sidecar(container):
            continue
        if not _ended(status):
            pending = True
        elif _exit_code(status) != 0:
            pending = True
            failed = failed or not restarts(pod, container, _exit_code(status))
    return pending, failed


def _ended(status: ContainerStatus) -> bool:
    if status.state.running is not None:
        return False
    return bool(status.state.terminated or status.last_state.terminated)


def _exit_code(status: ContainerStatus) -> int:
    ended = status.state.terminated or status.last_state.terminated
    return ended.exit_code if ended else 0


def _ending(apps: tuple[ContainerStatus, ...]) -> str:
    return "Succeeded" if all(_exit_code(s) == 0 for s in apps) else "Failed"


# --- conditions -------------------------------------------------------------------------------------------

_Draft = tuple[str, str, str]  # status, reason, message


def _conditions(
    pod: Pod,
    given: StatusInput,
    init: tuple[ContainerStatus, ...],
    apps: tuple[ContainerStatus, ...],
    phase: str,
) -> tuple[Condition, ...]:
    foreign = [c for c in pod.status.conditions if c.type not in OWN_CONDITIONS]
    containers = _containers_ready(pod, init, apps, phase)
    drafts: dict[str, _Draft] = {
        "PodReadyToStartContainers": _sandbox_ready(pod, given),
        "Initialized": _initialized(pod, init, apps, phase),
        "Ready": _ready(pod, foreign, containers),
        "ContainersReady": containers,
        "PodScheduled": ("True", "", ""),
    }
    if given.verdict is not None and given.verdict.disruption and given.over:
        drafts["DisruptionTarget"] = ("True", "TerminationByKubelet", given.verdict.message)
    before = {c.type: c for c in (*pod.status.conditions, *given.previous.conditions)}
    if may_restart_all(pod):
        drafts["AllContainersRestarting"] = _all_restarting(given, phase)
    made = [_condition(pod, kind, draft, before.get(kind), given.now) for kind, draft in drafts.items()]
    made += [_resize_condition(draft, before.get(draft.type), given.now) for draft in given.resize]
    disrupted = before.get("DisruptionTarget")
    if disrupted is not None and "DisruptionTarget" not in drafts:
        made.append(disrupted)
    return (*foreign, *made)


def _condition(pod: Pod, kind: str, draft: _Draft, before: Condition | None, now: float) -> Condition:
    status, reason, message = draft
    same = before is not None and before.status == status and before.last_transition_time
    return Condition(
        type=kind,
        status=status,
        observed_generation=pod.metadata.generation,
        reason=reason,
        message=message,
        last_transition_time=before.last_transition_time if same and before else format_time(now),
    )


def _all_restarting(given: StatusInput, phase: str) -> _Draft:
    if phase in ("Failed", "Succeeded"):
        return ("False", "PodFailed" if phase == "Failed" else "PodCompleted", "")
    if given.containers.restarting and given.facts.containers:
        return ("True", "RestartAllContainersStarted", "container exited with restart policy rule")
    return ("False", "", "")


def _resize_condition(draft: ResizeDraft, before: Condition | None, now: float) -> Condition:
    same = before is not None and before.reason == draft.reason
    return Condition(
        type=draft.type,
        status="True",
        observed_generation=draft.generation,
        reason=draft.reason,
        message=draft.message,
        last_transition_time=before.last_transition_time if same and before else format_time(now),
    )


def _sandbox_ready(pod: Pod, given: StatusInput) -> _Draft:
    box = given.facts.sandbox
    if box is not None and box.ready and (box.ips or pod.spec.host_network):
        return ("True", "", "")
    return ("False", "", "")


def _initialized(
    pod: Pod, init: tuple[ContainerStatus, ...], apps: tuple[ContainerStatus, ...], phase: str
) -> _Draft:
    if phase == "Succeeded":
        return ("True", "PodCompleted", "")
    if any(s.state.running or s.state.terminated or s.last_state.terminated for s in apps):
        return ("True", "", "")
    missing = [
        s.name
        for s, c in zip(init, pod.spec.init_containers, strict=True)
        if not (s.started if spec.is_sidecar(c) else s.ready)
    ]
    if missing:
        text = f"containers with incomplete status: {_names(missing)}"
        return ("False", "ContainersNotInitialized", text)
    return ("True", "", "")


def _containers_ready(
    pod: Pod, init: tuple[ContainerStatus, ...], apps: tuple[ContainerStatus, ...], phase: str
) -> _Draft:
    if phase == "Succeeded":
        return ("False", "PodCompleted", "")
    if phase == "Failed":
        return ("False", "PodFailed", "")
    side = [s for s, c in zip(init, pod.spec.init_containers, strict=True) if spec.is_sidecar(c)]
    unready = [s.name for s in (*side, *apps) if not s.ready]
    if unready:
        return ("False", "ContainersNotReady", f"containers with unready status: {_names(unready)}")
    return ("True", "", "")


def _ready(pod: Pod, foreign: list[Condition], containers: _Draft) -> _Draft:
    if containers[0] != "True":
        return containers
    have: Mapping[str, str] = {c.type: c.status for c in foreign}
    texts = []
    for gate in pod.spec.readiness_gates:
        kind = gate.condition_type
        if kind not in have:
            texts.append(f'corresponding condition of pod readiness gate "{kind}" does not exist.')
        elif have[kind] != "True":
            texts.append(f'the status of pod readiness gate "{kind}" is not "True", but {have[kind]}')
    return ("False", "ReadinessGatesNotReady", ", ".join(texts)) if texts else containers


def _names(names: list[str]) -> str:
    return f"[{' '.join(names)}]"
