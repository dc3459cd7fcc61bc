"""Quality of service: a pod's class and what follows from it. Pure.

Source: k8s.io/kubernetes pkg/apis/core/v1/helper/qos, pkg/kubelet/qos/policy.go,
pkg/kubelet/cm/helpers_linux.go, and k8s.io/component-helpers/resource (API reference v1.37).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction

from agent.api import quantity
from agent.api.structs import Container, Pod, ResourceRequirements

GUARANTEED = "Guaranteed"
BURSTABLE = "Burstable"
BEST_EFFORT = "BestEffort"

CRITICAL_PRIORITY = 2_000_000_000
"""Pods of the system-*-critical priority classes have this priority or more."""
GUARANTEED_SCORE = -997
BEST_EFFORT_SCORE = 1000
MIN_SHARES, MAX_SHARES = 2, 262144
QUOTA_PERIOD_US = 100_000
MIN_QUOTA_US = 1000

_COMPUTE = ("cpu", "memory")


def parse_all(quantities: Mapping[str, str]) -> dict[str, Fraction]:
    """Resource amounts in base units (cores, bytes). Raises ValueError for text that is no quantity."""
    return {name: quantity.parse(text) for name, text in quantities.items()}


def requests_of(resources: ResourceRequirements) -> dict[str, Fraction]:
    """A container's requests; a limit without a request stands for both, as the API server defaults it."""
    return {**parse_all(resources.limits), **parse_all(resources.requests)}


def limits_of(pod: Pod, container: Container) -> dict[str, Fraction]:
    """A container's limits; for cpu and memory the pod's own stands in where it has none (KEP-2837)."""
    limits = parse_all(container.resources.limits)
    shared = parse_all(pod.spec.resources.limits) if pod.spec.resources is not None else {}
    return {**limits, **{n: v for n, v in shared.items() if n in _COMPUTE and not limits.get(n)}}


def qos_class(pod: Pod) -> str:
    """Guaranteed, Burstable or BestEffort, from cpu and memory of app and init containers."""
    if pod.spec.resources is not None and (pod.spec.resources.requests or pod.spec.resources.limits):
        sets: list[ResourceRequirements] = [pod.spec.resources]
    else:
        sets = [c.resources for c in (*pod.spec.containers, *pod.spec.init_containers)]
    guaranteed, anything = True, False
    for resources in sets:
        limits = {n: v for n, v in parse_all(resources.limits).items() if n in _COMPUTE and v > 0}
        requests = {n: v for n, v in requests_of(resources).items() if n in _COMPUTE and v > 0}
        anything = anything or bool(limits or requests)
        guaranteed = guaranteed and set(limits) == set(_COMPUTE) and requests == limits
    if not anything:
        return BEST_EFFORT
    return GUARANTEED if guaranteed else BURSTABLE


def pod_requests(pod: Pod, *, overhead: bool = True) -> dict[str, Fraction]:
    """What the scheduler counts for a pod: the larger of all app containers with sidecars and any init step,
    pod-level requests in their place where set, plus overhead."""
    total = aggregate(pod, requests_of)
    if pod.spec.resources is not None:
        total.update(requests_of(pod.spec.resources))
    return _add(total, parse_all(pod.spec.overhead)) if overhead else total


def pod_limits(pod: Pod, *, overhead: bool = True) -> dict[str, Fraction]:
    """A pod's limit for each resource that *every* container limits, or the pod as a whole."""
    everyone = (*pod.spec.containers, *pod.spec.init_containers)
    total = aggregate(pod, lambda resources: parse_all(resources.limits))
    total = {n: v for n, v in total.items() if all(n in c.resources.limits for c in everyone)}
    if pod.spec.resources is not None:
        total.update(parse_all(pod.spec.resources.limits))
    extra = parse_all(pod.spec.overhead) if overhead else {}
    return {name: amount + extra.get(name, Fraction(0)) for name, amount in total.items()}


def aggregate(
    pod: Pod, amounts: Callable[[ResourceRequirements], Mapping[str, Fraction]]
) -> dict[str, Fraction]:
    """Containers' amounts as the scheduler adds them up: what runs together, or an init step if larger."""
    running: dict[str, Fraction] = {}
    peak: dict[str, Fraction] = {}
    for container in pod.spec.init_containers:
        mine = amounts(container.resources)
        step = _add(running, mine)
        if container.restart_policy == "Always":
            running = step
        peak = _max(peak, step)
    for container in pod.spec.containers:
        running = _add(running, amounts(container.resources))
    return _max(peak, running)


def _add(left: Mapping[str, Fraction], right: Mapping[str, Fraction]) -> dict[str, Fraction]:
    return {name: left.get(name, Fraction(0)) + right.get(name, Fraction(0)) for name in {*left, *right}}


def _max(left: Mapping[str, Fraction], right: Mapping[str, Fraction]) -> dict[str, Fraction]:
    zero = Fraction(0)
    return {name: max(left.get(name, zero), right.get(name, zero)) for name in {*left, *right}}


def cpu_shares(cores: Fraction) -> int:
    """CPU request in cores to v1 shares: 1024 a core, at least 2."""
    return min(MAX_SHARES, max(MIN_SHARES, int(cores * 1000) * 1024 // 1000))


def cpu_quota_us(cores: Fraction, period_us: int = QUOTA_PERIOD_US) -> int:
    """CPU limit in cores to microseconds per period, at least 1 ms."""
    return max(MIN_QUOTA_US, int(cores * period_us))


def oom_score_adj(pod: Pod, container: Container, memory_capacity: int) -> int:
    """How willingly the kernel ends this container when memory runs out, -997 (never) to 1000 (first).

    Args:
        memory_capacity: the node's memory in bytes.
    """
    if (pod.spec.priority or 0) >= CRITICAL_PRIORITY:
        return GUARANTEED_SCORE
    kind = qos_class(pod)
    if kind == GUARANTEED:
        return GUARANTEED_SCORE
    if kind == BEST_EFFORT or memory_capacity <= 0:
        return BEST_EFFORT_SCORE
    extra = _spare_memory(pod)
    score = 1000 - int(1000 * (_memory(container) + extra) // memory_capacity)
    if container.restart_policy == "Always" and container in pod.spec.init_containers:
        least = min((_memory(c) for c in pod.spec.containers), default=Fraction(0)) + extra
        score = min(score, 1000 - int(1000 * least // memory_capacity))
    return min(BEST_EFFORT_SCORE - 1, max(1000 + GUARANTEED_SCORE, score))


def _memory(container: Container) -> Fraction:
    return requests_of(container.resources).get("memory", Fraction(0))


def _spare_memory(pod: Pod) -> Fraction:
    """Pod-level memory request that no container claims, shared out evenly (KEP-2837)."""
    if pod.spec.resources is None or "memory" not in requests_of(pod.spec.resources):
        return Fraction(0)
    containers: Iterable[Container] = (*pod.spec.init_containers, *pod.spec.containers)
    claimed = aggregate(pod, requests_of).get("memory", Fraction(0))
    spare = requests_of(pod.spec.resources)["memory"] - claimed
    return max(Fraction(0), spare) / max(1, len(tuple(containers)))
