"""The node's conditions, from figures and from what the runtime says. Pure: facts in, conditions out.

Reasons and messages are kubelet's where people and tools match on them ("KubeletReady",
"container runtime network not ready: …"); pressure messages show the arithmetic.

Source: k8s.io/kubernetes/pkg/kubelet/nodestatus/setters.go, pkg/kubelet/eviction/types.go (v1.37).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from agent.api import quantity
from agent.api.meta import Condition
from agent.node.facts import Usage


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
    handlers: tuple[str, ...] = ()
    supplemental_groups_policy: bool = False


@dataclasses.dataclass(frozen=True)
class Signal:
    """One eviction signal: how much is left of how much."""

    name: str
    available: int
    capacity: int


def signals(usage: Usage, *, memory: int) -> tuple[Signal, ...]:
    """The signals we measure. `memory` is the machine's, in bytes."""
    return (
        Signal("memory.available", usage.memory_available, memory),
        Signal("nodefs.available", usage.nodefs_available, usage.nodefs_capacity),
        Signal("nodefs.inodesFree", usage.nodefs_inodes_free, usage.nodefs_inodes),
        Signal("pid.available", usage.pids_capacity - usage.pids_used, usage.pids_capacity),
    )


def threshold(text: str, capacity: int) -> int:
    """An eviction threshold in units: "100Mi", or "10%" of the capacity. Raises ValueError."""
    if text.endswith("%"):
        return int(capacity * float(text[:-1]) / 100)
    return quantity.value(text)


_PRESSURES = (
    ("MemoryPressure", "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory", ("memory.available",)),
    (
        "DiskPressure",
        "KubeletHasDiskPressure",
        "KubeletHasNoDiskPressure",
        ("nodefs.available", "nodefs.inodesFree"),
    ),
    ("PIDPressure", "KubeletHasInsufficientPID", "KubeletHasSufficientPID", ("pid.available",)),
)


def plan(
    *,
    found: Sequence[Signal],
    thresholds: Mapping[str, str],
    runtime: RuntimeState,
    problems: Sequence[str] = (),
) -> tuple[Condition, ...]:
    """All four conditions, without times. `problems` are further reasons not to be ready."""
    by_name = {signal.name: signal for signal in found}
    result = [
        _pressure(kind, bad, good, [by_name[name] for name in names if name in by_name], thresholds)
        for kind, bad, good, names in _PRESSURES
    ]
    return (*result, ready(runtime, problems))


def _pressure(
    kind: str, bad: str, good: str, found: Sequence[Signal], thresholds: Mapping[str, str]
) -> Condition:
    for signal in found:
        limit = threshold(thresholds.get(signal.name, "0"), signal.capacity)
        if signal.available < limit:
            text = f"{signal.name} {signal.available} is below {limit} ({thresholds[signal.name]})"
            return Condition(type=kind, status="True", reason=bad, message=text)
    text = {
        "MemoryPressure": "kubelet has sufficient memory available",
        "DiskPressure": "kubelet has no disk pressure",
        "PIDPressure": "kubelet has sufficient PID available",
    }[kind]
    return Condition(type=kind, status="False", reason=good, message=text)


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
