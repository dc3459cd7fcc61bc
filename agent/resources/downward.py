"""What the downward API tells of a container's requests and limits, in its environment and in volumes. Pure.

Source: core/v1 ResourceFieldSelector; pkg/api/v1/resource and pkg/kubelet/kubelet_resources.go (v1.37).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from agent.api import quantity
from agent.api.structs import Container, Pod

_ALWAYS_LIMITED = ("cpu", "memory", "ephemeral-storage")
"""A limit that nobody sets is the node's; huge pages, never overcommitted, are none without a limit."""
_OF_A_POD = ("cpu", "memory")
"""What a pod can limit as a whole (KEP-2837) and the downward API tells."""


def resource_value(
    pod: Pod, container: Container, resource: str, divisor: str, allocatable: Mapping[str, str]
) -> str:
    """A request or limit as a whole number of divisors, rounded up.

    Args:
        pod: its limits stand in for limits that the container leaves unset.
        container: whose request or limit it is.
        resource: such as "limits.memory".
        divisor: a quantity; empty or zero: 1.
        allocatable: the node's, which stands in where the pod has no limit either.

    Raises:
        ValueError: an unknown resource, or a divisor that is no quantity; the words are kubelet's.
    """
    side, _, name = resource.partition(".")
    if side not in ("limits", "requests") or not (name in _ALWAYS_LIMITED or name.startswith("hugepages-")):
        raise ValueError(f"unsupported container resource : {resource}")
    if side == "requests":
        # What the API server fills in where a limit comes alone; a pod of a file has nobody else to do it.
        text = container.resources.requests.get(name) or container.resources.limits.get(name, "0")
    else:
        text = container.resources.limits.get(name, "0")
        if name in _ALWAYS_LIMITED and not quantity.parse(text):
            text = _of_pod(pod, name) or allocatable.get(name, "0")
    unit = quantity.parse(divisor or "1") or quantity.parse("1")
    return str(math.ceil(quantity.parse(text) / unit))


def _of_pod(pod: Pod, name: str) -> str:
    """The pod's own limit; empty: none."""
    limits = pod.spec.resources.limits if pod.spec.resources is not None else {}
    text = limits.get(name, "") if name in _OF_A_POD else ""
    return text if text and quantity.parse(text) else ""
