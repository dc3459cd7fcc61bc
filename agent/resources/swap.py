"""How much swap a container may use. Pure.

NoSwap: none at all. LimitedSwap: a Burstable container may use the share of the node's swap that its memory
request is of the node's memory; every other one none, nor a critical pod's, nor one whose request is its
limit, because that one asked for real memory. LimitedSwap needs cgroup v2, as with kubelet.

Source: k8s.io/kubernetes/pkg/kubelet/kuberuntime/kuberuntime_container_linux.go, swapConfigurationHelper
(v1.37); KEP-2400.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from agent.api.structs import Container, Pod
from agent.resources import qos
from agent.resources.eviction.admission import critical

FILE = "memory.swap.max"


@dataclass(frozen=True, kw_only=True)
class SwapPolicy:
    """The node's swap. Sizes in bytes."""

    limited: bool = False
    """LimitedSwap (memorySwap.swapBehavior)."""
    accounting: Literal["", "v1", "v2"] = ""
    """How the kernel limits swap of a cgroup: memory and swap together, swap alone, or not at all."""
    total: int = 0
    memory: int = 0
    """The node's."""


@dataclass(frozen=True, kw_only=True)
class SwapLimit:
    """What CRI is told: a sum of memory and swap for v1, a file's content for v2."""

    memory_and_swap: int | None = None
    unified: Mapping[str, str] = field(default_factory=dict)


def swap_limit(pod: Pod, container: Container, policy: SwapPolicy) -> SwapLimit:
    """The limit of one container."""
    memory = qos.parse_all(container.resources.limits).get("memory")
    if policy.accounting == "v1":
        return SwapLimit(memory_and_swap=int(memory) if memory else None)
    if policy.accounting == "v2":
        return SwapLimit(unified={FILE: str(_share(pod, container, policy))})
    return SwapLimit()


def _share(pod: Pod, container: Container, policy: SwapPolicy) -> int:
    request = qos.requests_of(container.resources).get("memory")
    limit = qos.parse_all(container.resources.limits).get("memory")
    entitled = policy.limited and qos.qos_class(pod) == qos.BURSTABLE and not critical(pod)
    if not entitled or not request or request == limit or policy.memory <= 0:
        return 0
    return int(request * policy.total // policy.memory)
