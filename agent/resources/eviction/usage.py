"""What pods use, for ranking and for local storage limits: asked for only when somebody has to be judged.

Memory and processes come from the pod's cgroup, containers and their writable layers from the runtime, logs
and emptyDir volumes from a walk of their folders in a thread.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.api.structs import Pod
from agent.pods.facts import LABEL_CONTAINER_NAME, LABEL_POD_UID
from agent.pods.settings import PodSettings
from agent.resources.eviction.rank import ContainerUsage, Disk, PodUsage
from host.cgroups import Cgroups
from host.diskusage import disk_usage

_Containers = Mapping[str, ContainerUsage]


class UsageReader:
    """Reads the use of pods.

    Args:
        stats: the runtime's figures of all running containers (CRI ContainerStats).
        failures: what `stats` raises; the pods' own figures are read all the same.
        pod_cgroup: path of a pod's cgroup.
    """

    def __init__(
        self,
        *,
        stats: Callable[[], Awaitable[Sequence[Any]]],
        failures: tuple[type[Exception], ...],
        cgroups: Cgroups,
        pod_cgroup: Callable[[Pod], str],
        settings: PodSettings,
    ) -> None:
        self._stats = stats
        self._failures = failures
        self._cgroups = cgroups
        self._pod_cgroup = pod_cgroup
        self._settings = settings

    async def read(self, pods: Iterable[Pod], *, disk: bool) -> dict[str, PodUsage]:
        """By pod uid. Logs and volumes are only walked when `disk` is set."""
        try:
            stats = await self._stats()
        except self._failures:
            stats = ()
        return await asyncio.to_thread(self._read, list(pods), by_pod(stats), disk)

    def _read(
        self, pods: Sequence[Pod], containers: Mapping[str, _Containers], disk: bool
    ) -> dict[str, PodUsage]:
        return {pod.metadata.uid: self._pod(pod, containers.get(pod.metadata.uid, {}), disk) for pod in pods}

    def _pod(self, pod: Pod, containers: _Containers, disk: bool) -> PodUsage:
        found = self._cgroups.stats(self._pod_cgroup(pod))
        usage = PodUsage(
            memory=found.memory_working_set or sum(each.memory for each in containers.values()),
            processes=found.pids,
            containers=containers,
        )
        return self._with_folders(pod, usage) if disk else usage

    def _with_folders(self, pod: Pod, usage: PodUsage) -> PodUsage:
        meta = pod.metadata
        logs = self._settings.log_dir(meta.namespace, meta.name, meta.uid)
        names = [c.name for c in (*pod.spec.init_containers, *pod.spec.containers)]
        containers = {
            name: replace(usage.containers.get(name, ContainerUsage()), logs=_disk(logs / name))
            for name in names
        }
        volumes = self._settings.pod_dir(meta.uid) / "volumes" / "kubernetes.io~empty-dir"
        empty = [volume for volume in pod.spec.volumes if volume.empty_dir is not None]
        return replace(
            usage,
            containers=containers,
            volumes={volume.name: _disk(volumes / volume.name) for volume in empty},
            memory_volumes=frozenset(v.name for v in empty if v.empty_dir and v.empty_dir.medium),
        )


def _disk(folder: Path) -> Disk:
    return Disk(*disk_usage(folder))


def by_pod(stats: Iterable[Any]) -> dict[str, dict[str, ContainerUsage]]:
    """CRI ContainerStats as usage, by pod uid and container name. Pure."""
    found: dict[str, dict[str, ContainerUsage]] = defaultdict(dict)
    for item in stats:
        labels, layer = item.attributes.labels, item.writable_layer
        found[labels.get(LABEL_POD_UID, "")][labels.get(LABEL_CONTAINER_NAME, "")] = ContainerUsage(
            memory=item.memory.working_set_bytes.value,
            rootfs=Disk(layer.used_bytes.value, layer.inodes_used.value),
        )
    return found
