"""The cgroups a node keeps above its containers: `kubepods`, one a QoS class, one a pod.

Layout as kubelet makes it: `<root>/kubepods/pod<uid>` for Guaranteed pods, and
`<root>/kubepods/{burstable,besteffort}/pod<uid>`; with the systemd driver the same names as slices,
`kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice`. Paths are relative to every
hierarchy's mount. The containers' own cgroups below are the runtime's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from fractions import Fraction
from typing import Protocol

from agent.api.structs import Pod
from agent.resources import qos
from agent.resources.node_allocatable import page_size
from host.cgroups import CgroupStats, Resources

_LEVELS = {
    qos.GUARANTEED: ("kubepods",),
    qos.BURSTABLE: ("kubepods", "burstable"),
    qos.BEST_EFFORT: ("kubepods", "besteffort"),
}


class CgroupPort(Protocol):
    """What is used of host.cgroups.Cgroups, whichever its driver."""

    @property
    def driver(self) -> str:
        """cgroupfs or systemd."""

    def nested_path(self, root: str, *names: str) -> str:
        """The path of names within each other below a root."""

    def parent_name(self, path: str) -> str:
        """A path as CRI's cgroup_parent names it."""

    def create(self, path: str, resources: Resources | None = None) -> None:
        """Make a cgroup and its parents, with limits."""

    def update(self, path: str, resources: Resources) -> None:
        """Change limits."""

    def remove(self, path: str) -> None:
        """Kill what is in it and remove it."""

    def stats(self, path: str) -> CgroupStats:
        """What it has used."""


def kubepods_path(cgroups: CgroupPort, root: str, kind: str) -> str:
    """The cgroup of a QoS class below the node's cgroup root."""
    return cgroups.nested_path(root, *_LEVELS[kind])


def pod_resources(
    pod: Pod, *, pids_limit: int = -1, cpu_quota: bool = True, period_us: int = 100_000
) -> Resources:
    """Limits of the pod's cgroup: the sum of its containers', where every container has one."""
    requests, limits = qos.pod_requests(pod), qos.pod_limits(pod)
    kind = qos.qos_class(pod)
    shares = qos.MIN_SHARES if kind == qos.BEST_EFFORT else qos.cpu_shares(requests.get("cpu", Fraction(0)))
    quota = qos.cpu_quota_us(limits["cpu"], period_us) if cpu_quota and limits.get("cpu") else None
    return Resources(
        cpu_shares=shares,
        cpu_quota_us=quota,
        cpu_period_us=period_us if quota is not None else None,
        memory_limit=int(limits["memory"]) if limits.get("memory") else None,
        pids_limit=pids_limit if pids_limit > 0 else None,
        hugepage_limits={
            page_size(name): int(amount) for name, amount in limits.items() if name.startswith("hugepages-")
        },
    )


class PodCgroups:
    """Makes and removes pod cgroups below one root; nothing outside it is ever touched."""

    def __init__(
        self,
        *,
        cgroups: CgroupPort,
        root: str,
        pids_limit: int = -1,
        cpu_quota: bool = True,
        period_us: int = 100_000,
        all_pods: Resources | None = None,
    ) -> None:
        """`all_pods`: limits of the cgroup above all pods, where they are enforced."""
        self._cgroups = cgroups
        self._all_pods = all_pods
        self._root = root
        self._pids_limit = pids_limit
        self._cpu_quota = cpu_quota
        self._period_us = period_us
        self._burstable: dict[str, Fraction] = {}
        self._weighing = asyncio.Lock()
        self._levels = False

    def ensure_levels(self) -> None:
        """Make `kubepods` and the QoS levels below it. Raises HostError."""
        for kind in (qos.GUARANTEED, qos.BURSTABLE, qos.BEST_EFFORT):
            resources = Resources(cpu_shares=qos.MIN_SHARES) if kind != qos.GUARANTEED else self._all_pods
            self._cgroups.create(kubepods_path(self._cgroups, self._root, kind), resources)
        self._levels = True

    def path(self, pod: Pod) -> str:
        """The pod's cgroup, whether it exists or not."""
        return self._path_of(qos.qos_class(pod), pod)

    def parent(self, pod: Pod) -> str:
        """The pod's cgroup as the runtime is told it."""
        return self._cgroups.parent_name(self.path(pod))

    def _path_of(self, kind: str, pod: Pod) -> str:
        return self._cgroups.nested_path(self._root, *_LEVELS[kind], f"pod{pod.metadata.uid}")

    async def create(self, pod: Pod) -> str:
        """Make the pod's cgroup with its limits; safe to repeat. Answers its path. Raises HostError."""
        if not self._levels:
            await self._do(self.ensure_levels)
        await self._do(self._cgroups.create, self.path(pod), self.resources(pod))
        await self._weigh(pod)
        return self.path(pod)

    def resources(self, pod: Pod) -> Resources:
        """The limits its cgroup shall have."""
        return pod_resources(
            pod, pids_limit=self._pids_limit, cpu_quota=self._cpu_quota, period_us=self._period_us
        )

    async def update(self, pod: Pod, resources: Resources) -> None:
        """Change some limits of a pod's cgroup that is there. Raises HostError."""
        await self._do(self._cgroups.update, self.path(pod), resources)
        await self._weigh(pod)

    def memory_usage(self, pod: Pod) -> int:
        """Bytes charged to the pod's cgroup. Raises HostError."""
        return self._cgroups.stats(self.path(pod)).memory_usage

    async def _weigh(self, pod: Pod) -> None:
        if qos.qos_class(pod) == qos.BURSTABLE:
            self._burstable[pod.metadata.uid] = qos.pod_requests(pod).get("cpu", Fraction(0))
            await self._weigh_burstable()

    async def remove(self, pod: Pod) -> None:
        """Kill and remove the pod's cgroup; a missing one is removed already. Raises HostError."""
        if self._burstable.pop(pod.metadata.uid, None) is not None:
            await self._weigh_burstable()
        # Nobody knows the class of a pod whose object is gone: look in all of them.
        known = bool(pod.spec.containers)
        kinds = (qos.qos_class(pod),) if known else (qos.GUARANTEED, qos.BURSTABLE, qos.BEST_EFFORT)
        for kind in kinds:
            # Waits for the last process to be reaped, so not in the event loop.
            await asyncio.to_thread(self._cgroups.remove, self._path_of(kind, pod))

    async def _weigh_burstable(self) -> None:
        # The level's weight is the sum of its pods', so that best-effort pods cannot crowd them out.
        async with self._weighing:  # the last to write is the last to have counted
            total = sum(self._burstable.values(), Fraction(0))
            level = kubepods_path(self._cgroups, self._root, qos.BURSTABLE)
            await self._do(self._cgroups.update, level, Resources(cpu_shares=qos.cpu_shares(total)))

    async def _do(self, work: Callable[..., None], *arguments: object) -> None:
        # Files are written in microseconds; systemd may take its time.
        if self._cgroups.driver == "systemd":
            await asyncio.to_thread(work, *arguments)
        else:
            work(*arguments)
