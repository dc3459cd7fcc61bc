"""The node's conditions, from what eviction and the runtime say. Pure: facts in, conditions out.

Reasons and messages are kubelet's where people and tools match on them ("KubeletReady",
"container runtime network not ready: …"); pressure messages show the arithmetic.

Source: k8s.io/kubernetes/pkg/kubelet/nodestatus/setters.go (v1.37).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from agent.api.cluster import NodeRuntimeHandler
from agent.api.meta import Condition


@dataclasses.dataclass(frozen=True)
class RuntimeState:
    """What CRI Status said; `error` is set when the runtime did not answer at all."""

    ready: bool = False
    network_ready: bool = False
    error: str = ""
    runtime_message: str = ""
    network_message: str = ""
    name: str = ""
    version: str = ""
    handlers: tuple[NodeRuntimeHandler, ...] = ()
    supplemental_groups_policy: bool = False


_PRESSURES = (
    (
        "MemoryPressure",
        "KubeletHasInsufficientMemory",
        "KubeletHasSufficientMemory",
        "kubelet has sufficient memory available",
    ),
    (
        "DiskPressure",
        "KubeletHasDiskPressure",
        "KubeletHasNoDiskPressure",
        "kubelet has no disk pressure",
    ),
    (
        "PIDPressure",
        "KubeletHasInsufficientPID",
        "KubeletHasSufficientPID",
        "kubelet has sufficient PID available",
    ),
)
_EVENTS = {
    "KubeletHasInsufficientMemory": "NodeHasInsufficientMemory",
    "KubeletHasSufficientMemory": "NodeHasSufficientMemory",
    "KubeletHasDiskPressure": "NodeHasDiskPressure",
    "KubeletHasNoDiskPressure": "NodeHasNoDiskPressure",
    "KubeletHasInsufficientPID": "NodeHasInsufficientPID",
    "KubeletHasSufficientPID": "NodeHasSufficientPID",
}
"""Reason of a pressure condition to reason of the event that tells of its change."""


def plan(
    *, pressures: Mapping[str, str], runtime: RuntimeState, problems: Sequence[str] = ()
) -> tuple[Condition, ...]:
    """All four conditions, without times.

    Args:
        pressures: conditions that are True, with the arithmetic behind each.
        problems: further reasons not to be ready.
    """
    return (*(_pressure(*words, pressures) for words in _PRESSURES), ready(runtime, problems))


def _pressure(kind: str, bad: str, good: str, text: str, pressures: Mapping[str, str]) -> Condition:
    if kind in pressures:
        return Condition(type=kind, status="True", reason=bad, message=pressures[kind])
    return Condition(type=kind, status="False", reason=good, message=text)


def pressure_events(new: Sequence[Condition], old: Sequence[Condition]) -> tuple[str, ...]:
    """Reasons of the events that tell how the pressures changed; none when there was no status before."""
    before = {condition.type: condition.status for condition in old}
    return tuple(
        _EVENTS[condition.reason]
        for condition in new
        if condition.reason in _EVENTS and before.get(condition.type, condition.status) != condition.status
    )


def ready(runtime: RuntimeState, problems: Sequence[str] = ()) -> Condition:
    """The Ready condition; the message lists everything that is missing."""
    wrong = list(problems)
    if runtime.error:
        wrong.append(f"container runtime is down: {runtime.error}")
    else:
        if not runtime.ready:
            wrong.append(f"container runtime not ready: {runtime.runtime_message or 'no reason given'}")
        if not runtime.network_ready:
            message = runtime.network_message or "no reason given"
            wrong.append(f"container runtime network not ready: {message}")
    if wrong:
        text = "; ".join(wrong)
        return Condition(type="Ready", status="False", reason="KubeletNotReady", message=text)
    text = "kubelet is posting ready status"
    return Condition(type="Ready", status="True", reason="KubeletReady", message=text)


def stamp(new: Sequence[Condition], old: Sequence[Condition], *, now: str) -> tuple[Condition, ...]:
    """Add times: the heartbeat is now, the transition is now only where the status changed. Conditions of
    other owners (network plugins) are left out; a strategic merge patch leaves them in place."""
    before = {condition.type: condition for condition in old}
    result = []
    for condition in new:
        last = before.get(condition.type)
        same = last is not None and last.status == condition.status and last.last_transition_time
        result.append(
            Condition(
                type=condition.type,
                status=condition.status,
                reason=condition.reason,
                message=condition.message,
                last_heartbeat_time=now,
                last_transition_time=last.last_transition_time if same and last else now,
            )
        )
    return tuple(result)
