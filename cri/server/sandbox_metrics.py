"""ListMetricDescriptors, ListPodSandboxMetrics, StreamPodSandboxMetrics: what Prometheus sees (KEP-2371)."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from pathlib import Path

from cri.server.container_create import data_folder
from cri.server.core import Core
from cri.server.metric_table import ALL, CONTAINER, POD, Disk, Sample, metrics
from cri.server.netdev import links_of
from cri.state.records import ContainerState, SandboxState
from cri.state.store import Container, Sandbox
from host.cgroups import CgroupStats
from host.diskusage import disk_usage
from proto.cri import runtime_pb2 as pb

_PROC, _SYS = Path("/proc"), Path("/sys")


async def list_metric_descriptors(
    core: Core, request: pb.ListMetricDescriptorsRequest
) -> pb.ListMetricDescriptorsResponse:
    """Every metric there is; the kubelet asks once, at its start."""
    return pb.ListMetricDescriptorsResponse(descriptors=[figure.descriptor for figure in ALL])


async def list_pod_sandbox_metrics(
    core: Core, request: pb.ListPodSandboxMetricsRequest
) -> pb.ListPodSandboxMetricsResponse:
    """The metrics of every ready pod and its running containers."""
    found = [await _measure(core, sandbox) for sandbox in _ready(core)]
    return pb.ListPodSandboxMetricsResponse(pod_metrics=found)


async def stream_pod_sandbox_metrics(
    core: Core, request: pb.StreamPodSandboxMetricsRequest
) -> AsyncIterator[pb.StreamPodSandboxMetricsResponse]:
    """The same, one message a pod."""
    for sandbox in _ready(core):
        yield pb.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=[await _measure(core, sandbox)])


def _ready(core: Core) -> list[Sandbox]:
    return [item for item in core.store.sandboxes.values() if item.record.state is SandboxState.READY]


async def _measure(core: Core, sandbox: Sandbox) -> pb.PodSandboxMetrics:
    containers = core.store.containers_of(sandbox.id)
    running = [item for item in containers if item.record.state is ContainerState.RUNNING]
    links = await links_of(core, sandbox)
    parent, meta = core.cgroups.pod_path(sandbox.config.linux.cgroup_parent), sandbox.config.metadata
    labels = (meta.name, meta.namespace)

    def read() -> pb.PodSandboxMetrics:
        sample = Sample(
            at=core.now(),
            stats=core.cgroups.stats(parent) if parent else CgroupStats(),
            processes=len(core.cgroups.pids(parent)) if parent else 0,
            links=links,
            device_name=device_name,
        )
        return pb.PodSandboxMetrics(
            pod_sandbox_id=sandbox.id,
            metrics=metrics(POD, sample, (*labels, "", sandbox.id, "")),
            container_metrics=[_of_container(core, item, labels) for item in running],
        )

    return await asyncio.to_thread(read)


def _of_container(core: Core, container: Container, labels: tuple[str, ...]) -> pb.ContainerMetrics:
    config = container.config
    image = config.image.user_specified_image or config.image.image
    base = (*labels, config.metadata.name, container.id, image)
    return pb.ContainerMetrics(
        container_id=container.id, metrics=metrics(CONTAINER, _sample(core, container), base)
    )


def _sample(core: Core, container: Container) -> Sample:
    record = container.record
    pids = core.cgroups.pids(record.cgroup)
    descriptors, sockets = count_descriptors(pids)
    return Sample(
        at=core.now(),
        stats=core.cgroups.stats(record.cgroup),
        started_at=record.started_at,
        processes=len(pids),
        descriptors=descriptors,
        sockets=sockets,
        max_open_files=max_open_files(record.pid),
        resources=container.config.linux.resources,
        disk=_disk(data_folder(core, container.id) / "upper"),
        device_name=device_name,
    )


def count_descriptors(pids: Iterable[int], *, proc: Path = _PROC) -> tuple[int, int]:
    """Open descriptors and the sockets among them, of all these processes; one that has ended has none."""
    descriptors = sockets = 0
    for pid in pids:
        folder = proc / str(pid) / "fd"
        with suppress(OSError):
            for name in os.listdir(folder):
                with suppress(OSError):
                    sockets += os.readlink(folder / name).startswith("socket:")
                    descriptors += 1
    return descriptors, sockets


def max_open_files(pid: int, *, proc: Path = _PROC) -> int | None:
    """The soft limit of open files (proc_pid_limits(5)); None: it has ended, or there is no limit."""
    try:
        text = (proc / str(pid) / "limits").read_text(encoding="ascii")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("Max open files"):
            soft = line.split()[3]
            return int(soft) if soft.isdecimal() else None
    return None


@functools.lru_cache(maxsize=64)
def device_name(major: int, minor: int, sys: Path = _SYS) -> str:
    """/dev/<name> of a block device, as cAdvisor names it; its numbers where sysfs has no name for it."""
    try:
        text = (sys / f"dev/block/{major}:{minor}/uevent").read_text(encoding="ascii")
    except OSError:
        return f"{major}:{minor}"
    words = dict(line.partition("=")[::2] for line in text.splitlines())
    return f"/dev/{words['DEVNAME']}" if "DEVNAME" in words else f"{major}:{minor}"


def _disk(upper: Path) -> Disk | None:
    try:
        found, number = os.statvfs(upper), os.stat(upper).st_dev
    except OSError:
        return None  # removed meanwhile
    used, _ = disk_usage(upper)
    return Disk(
        device=device_name(os.major(number), os.minor(number)),
        used=used,
        size=found.f_blocks * found.f_frsize,
        inodes=found.f_files,
        inodes_free=found.f_ffree,
    )
