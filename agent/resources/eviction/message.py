"""The words of an eviction, with the figures that led to it. Pure. The forms are kubelet's.

Source: k8s.io/kubernetes/pkg/kubelet/eviction/helpers.go, evictionMessage (v1.37).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agent.api import quantity
from agent.api.structs import Pod
from agent.resources.eviction import signals
from agent.resources.eviction.rank import ContainerUsage, PodUsage
from agent.resources.eviction.signals import Observation, Threshold

REASON = "Evicted"


def low(pod: Pod, usage: PodUsage | None, due: Sequence[Threshold], seen: Mapping[str, Observation]) -> str:
    """Why this pod goes: what the node is short of, the figures, and who used more than asked for.

    Args:
        due: the thresholds that are met, the one acted on first.
    """
    resource = signals.RESOURCES[due[0].signal]
    texts = [f"The node was low on resource: {resource}. "]
    cause = next((t for t in due if signals.RESOURCES[t.signal] == resource and t.signal in seen), None)
    if cause is not None:
        found = seen[cause.signal]
        write = quantity.format_decimal if resource in ("inodes", "pids") else quantity.format_binary
        limit = quantity.format_binary(cause.limit(found))
        texts.append(f"Threshold quantity: {limit}, available: {write(found.available)}. ")
    if usage is None:
        return "".join(texts)
    if resource == "memory" and pod.spec.resources is not None:
        request = pod.spec.resources.requests.get("memory")
        if request is not None:
            texts.append(_larger("Pod", pod.metadata.name, usage.memory, request, resource))
    for container in (*pod.spec.containers, *pod.spec.init_containers):
        found_use = usage.containers.get(container.name)
        amount = None if found_use is None else _amount(found_use, resource)
        request = container.resources.requests.get(resource, "0")
        if amount is not None and amount > quantity.parse(request):
            texts.append(_larger("Container", container.name, amount, request, resource))
    return "".join(texts)


def _larger(kind: str, name: str, used: int, request: str, resource: str) -> str:
    amount = quantity.format_binary(used)
    return f"{kind} {name} was using {amount}, request is {request}, has larger consumption of {resource}. "


def _amount(usage: ContainerUsage, resource: str) -> int | None:
    if resource == "memory":
        return usage.memory
    return usage.rootfs.bytes + usage.logs.bytes if resource == "ephemeral-storage" else None
