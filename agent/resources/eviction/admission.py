"""Which pods a node under pressure still takes. Pure.

Critical pods are always taken, because the node may need them to get well. Memory pressure alone shuts out
BestEffort pods only, unless they tolerate it; any other pressure shuts out everybody.

Source: k8s.io/kubernetes/pkg/kubelet/eviction/eviction_manager.go, Admit (v1.37).
"""

from __future__ import annotations

from collections.abc import Collection

from agent.api.structs import Pod, Toleration
from agent.resources import qos
from agent.resources.eviction.message import REASON
from agent.resources.eviction.signals import MEMORY_PRESSURE

_TAINT = "node.kubernetes.io/memory-pressure"
_STATIC = ("kubernetes.io/config.source", "kubernetes.io/config.mirror")


def critical(pod: Pod) -> bool:
    """Whether the pod is never refused or evicted: a static pod, or one of a system-*-critical class."""
    source, mirror = (pod.metadata.annotations.get(key) for key in _STATIC)
    return (
        source not in (None, "api") or mirror is not None or (pod.spec.priority or 0) >= qos.CRITICAL_PRIORITY
    )


def refusal(pod: Pod, pressures: Collection[str]) -> tuple[str, str] | None:
    """Reason and message when the pod is not taken; None when it is."""
    if not pressures or critical(pod):
        return None
    burdens = qos.qos_class(pod) == qos.BEST_EFFORT and not any(map(_tolerates, pod.spec.tolerations))
    if set(pressures) == {MEMORY_PRESSURE} and not burdens:
        return None
    return REASON, f"The node had condition: [{' '.join(sorted(pressures))}]. "


def _tolerates(toleration: Toleration) -> bool:
    """Whether it covers the NoSchedule taint of memory pressure, which has no value."""
    if toleration.effect not in ("", "NoSchedule"):
        return False
    if toleration.operator == "Exists":
        return toleration.key in ("", _TAINT)
    return toleration.key == _TAINT and toleration.value == ""
