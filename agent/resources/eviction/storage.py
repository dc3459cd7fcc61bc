"""Limits on what one pod may write to the node's disk: emptyDir, containers, the pod in all. Pure.

Nothing in the kernel stops the writing; a pod found above its limit is evicted, whether or not the node is
short of disk.

Source: k8s.io/kubernetes/pkg/kubelet/eviction/eviction_manager.go, localStorageEviction (v1.37).
"""

from __future__ import annotations

from fractions import Fraction

from agent.api import quantity
from agent.api.structs import Pod
from agent.resources import qos
from agent.resources.eviction.rank import PodUsage
from agent.resources.eviction.signals import Disks

_STORAGE = "ephemeral-storage"


def limited(pod: Pod) -> bool:
    """Whether the pod has any such limit, so that its use has to be measured."""
    return total_limit(pod) is not None or any(
        volume.empty_dir is not None and volume.empty_dir.size_limit for volume in pod.spec.volumes
    )


def total_limit(pod: Pod) -> Fraction | None:
    """The sum of the containers' limits; None when no container has one."""
    return qos.aggregate(pod, lambda resources: qos.parse_all(resources.limits)).get(_STORAGE)


def overrun(pod: Pod, usage: PodUsage, disks: Disks) -> str | None:
    """Which limit the pod exceeds, as the message of its eviction; None when it keeps all of them."""
    for volume in pod.spec.volumes:
        limit = volume.empty_dir.size_limit if volume.empty_dir is not None else None
        used = usage.volumes.get(volume.name)
        if limit and used is not None and 0 < quantity.parse(limit) < used.bytes:
            return f'Usage of EmptyDir volume "{volume.name}" exceeds the limit "{limit}". '
    total = total_limit(pod)
    if total is not None:
        everything = usage.rootfs + usage.logs + usage.local_volumes
        if everything.bytes > total:
            text = quantity.format_binary(int(total))
            return f"Pod ephemeral local storage usage exceeds the total limit of containers {text}. "
    for container in pod.spec.containers:
        limit = container.resources.limits.get(_STORAGE)
        mine = usage.containers.get(container.name)
        if not limit or mine is None:
            continue
        used_bytes = mine.logs.bytes + (0 if disks.images else mine.rootfs.bytes)
        if 0 < quantity.parse(limit) < used_bytes:
            return f'Container {container.name} exceeded its local ephemeral storage limit "{limit}". '
    return None
