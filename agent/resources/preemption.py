"""Room for a critical pod: which other pods have to end for it. Pure.

Critical are static pods and those of the system-*-critical classes: without them there may be no cluster to
ask. As few pods as possible end, best-effort ones first, and a critical one only for a more important one.

Source: pkg/kubelet/preemption/preemption.go (v1.37).
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from agent.api.structs import Pod
from agent.resources import qos
from agent.resources.admission import NodeFacts, Rejection, admit, room
from agent.resources.eviction.admission import critical

REASON = "Preempting"
MESSAGE = "Preempted in order to admit critical pod"
_RANK = {qos.BEST_EFFORT: 0, qos.BURSTABLE: 1, qos.GUARANTEED: 2}


def admit_or_preempt(
    pod: Pod, others: Iterable[Pod], node: NodeFacts
) -> tuple[Rejection | None, tuple[Pod, ...]]:
    """As `admit`, and the pods that have to end first, which is asked for critical pods alone."""
    rest = list(others)
    refused = admit(pod, rest, node)
    if refused is None or not refused.reason.startswith("OutOf") or not critical(pod):
        return refused, ()
    gone = victims(pod, rest, node)
    if gone is None:
        text = f"preemption: no set of running pods found to reclaim resources: {refused.message}"
        return Rejection("UnexpectedAdmissionError", text), ()
    ending = {other.metadata.uid for other in gone}
    refused = admit(pod, [other for other in rest if other.metadata.uid not in ending], node)
    return (refused, ()) if refused is not None else (None, gone)


def victims(pod: Pod, others: list[Pod], node: NodeFacts) -> tuple[Pod, ...] | None:
    """The least valuable pods whose end makes room; None when even all that may end do not."""
    chosen: list[Pod] = []

    def enough() -> bool:
        ending = {other.metadata.uid for other in chosen}
        return room(pod, [other for other in others if other.metadata.uid not in ending], node) is None

    for candidate in sorted((o for o in others if _yields(pod, o)), key=_value):
        if enough():
            break
        chosen.append(candidate)
    if not enough():
        return None
    for candidate in reversed(list(chosen)):  # what was taken before a larger one may not be needed
        chosen.remove(candidate)
        if not enough():
            chosen.append(candidate)
    return tuple(sorted(chosen, key=_value))


def _yields(pod: Pod, other: Pod) -> bool:
    if not critical(other):
        return True
    mine, its = pod.spec.priority, other.spec.priority
    return mine is not None and its is not None and mine > its


def _value(pod: Pod) -> tuple[int, int, Fraction, Fraction]:
    asked, none = qos.pod_requests(pod), Fraction(0)
    size = asked.get("memory", none), asked.get("cpu", none)
    return _RANK[qos.qos_class(pod)], pod.spec.priority or 0, *size
