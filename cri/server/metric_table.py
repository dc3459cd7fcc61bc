"""The metrics of ListPodSandboxMetrics: cAdvisor's names and labels (KEP-2371), and where each comes from.

The kubelet shows them as its /metrics/cadvisor (feature PodAndContainerStatsFromCRI) and knows nothing but
what is here. CRI's values are whole numbers, so times are whole seconds, as with every runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from cri.server.netdev import LinkCounters
from host.cgroups import CgroupStats
from proto.cri import runtime_pb2 as pb

BASE_LABELS = ("pod", "namespace", "container", "id", "image")
_NS = 1_000_000_000
Kind = Literal["counter", "gauge"]


@dataclass(frozen=True, kw_only=True)
class Disk:
    """The writable layer and the file system it is on; bytes."""

    device: str
    used: int
    size: int
    inodes: int
    inodes_free: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Everything one look at a pod or container gave."""

    at: int
    """Nanoseconds since 1970."""
    stats: CgroupStats
    started_at: int = 0
    processes: int = 0
    descriptors: int = 0
    sockets: int = 0
    max_open_files: int | None = None
    """Soft limit of the first process; None: it has ended, or there is no limit."""
    resources: pb.LinuxContainerResources = field(default_factory=pb.LinuxContainerResources)
    disk: Disk | None = None
    links: tuple[LinkCounters, ...] = ()
    device_name: Callable[[int, int], str] = "{}:{}".format


Rows = Iterator[tuple[tuple[str, ...], int]]


@dataclass(frozen=True)
class Figure:
    """One metric: its descriptor, and its rows of (further label values, value) in a sample."""

    name: str
    help: str
    kind: Kind
    rows: Callable[[Sample], Rows]
    labels: tuple[str, ...] = ()

    @property
    def descriptor(self) -> pb.MetricDescriptor:
        """As ListMetricDescriptors has it."""
        return pb.MetricDescriptor(name=self.name, help=self.help, label_keys=(*BASE_LABELS, *self.labels))


def _one(name: str, kind: Kind, words: str, value: Callable[[Sample], int | None]) -> Figure:
    def rows(sample: Sample) -> Rows:
        found = value(sample)
        if found is not None:
            yield (), found

    return Figure(f"container_{name}", words, kind, rows)


def _stat(name: str, kind: Kind, words: str, attribute: str, *, divisor: int = 1) -> Figure:
    return _one(name, kind, words, lambda sample: getattr(sample.stats, attribute) // divisor)


def _io(name: str, words: str, attribute: str) -> Figure:
    def rows(sample: Sample) -> Rows:
        for one in sample.stats.io:
            yield (sample.device_name(one.major, one.minor),), getattr(one, attribute)

    return Figure(f"container_{name}", words, "counter", rows, ("device",))


def _disk(name: str, words: str, attribute: str) -> Figure:
    def rows(sample: Sample) -> Rows:
        if sample.disk is not None:
            yield (sample.disk.device,), getattr(sample.disk, attribute)

    return Figure(f"container_{name}", words, "gauge", rows, ("device",))


def _network(name: str, words: str, attribute: str) -> Figure:
    def rows(sample: Sample) -> Rows:
        for link in sample.links:
            yield (link.name,), getattr(link, attribute)

    return Figure(f"container_network_{name}_total", words, "counter", rows, ("interface",))


def _failures(sample: Sample) -> Rows:
    for kind, scope in (("pgfault", "hierarchy"), ("pgmajfault", "hierarchy")):
        faults = {
            "pgfault": sample.stats.memory_page_faults,
            "pgmajfault": sample.stats.memory_major_page_faults,
        }
        yield (kind, scope), faults[kind]


def _device_usage(sample: Sample) -> Rows:
    for one in sample.stats.io:
        name = sample.device_name(one.major, one.minor)
        for operation, value in (("Read", one.read_bytes), ("Write", one.written_bytes)):
            yield (name, str(one.major), str(one.minor), operation), value


def _ulimits(sample: Sample) -> Rows:
    if sample.max_open_files is not None:
        yield ("max_open_files",), sample.max_open_files


CPU = (
    _stat("cpu_usage_seconds_total", "counter", "CPU time used, seconds.", "cpu_usage_ns", divisor=_NS),
    _stat("cpu_user_seconds_total", "counter", "CPU time in user mode, seconds.", "cpu_user_ns", divisor=_NS),
    _stat("cpu_system_seconds_total", "counter", "CPU time in the kernel.", "cpu_system_ns", divisor=_NS),
    _stat("cpu_cfs_periods_total", "counter", "Periods in which a CPU quota was counted.", "cpu_periods"),
    _stat("cpu_cfs_throttled_periods_total", "counter", "Those throttled.", "cpu_throttled_periods"),
    _stat("cpu_cfs_throttled_seconds_total", "counter", "Throttled for.", "cpu_throttled_ns", divisor=_NS),
)
MEMORY = (
    _stat("memory_usage_bytes", "gauge", "Memory in use, with page cache.", "memory_usage"),
    _stat("memory_working_set_bytes", "gauge", "In use without idle page cache.", "memory_working_set"),
    _stat("memory_rss", "gauge", "Anonymous memory, bytes.", "memory_rss"),
    _stat("memory_cache", "gauge", "Page cache, bytes.", "memory_cache"),
    _stat("memory_mapped_file", "gauge", "Mapped files, bytes.", "memory_mapped_file"),
    _stat("memory_kernel_usage", "gauge", "Memory of the kernel for it, bytes.", "memory_kernel"),
    _stat("memory_swap", "gauge", "Swap in use, bytes.", "swap_usage"),
    _stat("memory_max_usage_bytes", "gauge", "The most it has used at once.", "memory_peak"),
    _stat("memory_failcnt", "counter", "How often the memory limit was met.", "memory_limit_hits"),
    _stat("memory_total_active_file_bytes", "gauge", "Page cache, active.", "memory_active_file"),
    _stat("memory_total_inactive_file_bytes", "gauge", "Page cache, idle.", "memory_inactive_file"),
    Figure(
        "container_memory_failures_total", "Page faults.", "counter", _failures, ("failure_type", "scope")
    ),
    _stat("oom_events_total", "counter", "Processes killed for want of memory.", "oom_kills"),
)
TASKS = (
    _one("processes", "gauge", "Processes in it.", lambda sample: sample.processes),
    _stat("threads", "gauge", "Threads in it.", "pids"),
    _stat("threads_max", "gauge", "Threads allowed; 0: no limit.", "pids_limit"),
)
IO = (
    _io("fs_reads_bytes_total", "Bytes read from a device.", "read_bytes"),
    _io("fs_reads_total", "Reads completed.", "reads"),
    _io("fs_writes_bytes_total", "Bytes written to a device.", "written_bytes"),
    _io("fs_writes_total", "Writes completed.", "writes"),
    Figure(
        "container_blkio_device_usage_total",
        "Bytes by device and direction.",
        "counter",
        _device_usage,
        ("device", "major", "minor", "operation"),
    ),
)
NETWORK = tuple(
    _network(f"{way}_{what}", f"{what.replace('_', ' ').capitalize()}, {way} side.", f"{short}_{attribute}")
    for way, short in (("receive", "rx"), ("transmit", "tx"))
    for what, attribute in (
        ("bytes", "bytes"),
        ("packets", "packets"),
        ("packets_dropped", "dropped"),
        ("errors", "errors"),
    )
)
OWN = (
    _one("file_descriptors", "gauge", "Open descriptors of all processes.", lambda item: item.descriptors),
    _one("sockets", "gauge", "Open sockets of all processes.", lambda item: item.sockets),
    Figure("container_ulimits_soft", "Soft limits of the first process.", "gauge", _ulimits, ("ulimit",)),
    _one("last_seen", "gauge", "When it was looked at, Unix seconds.", lambda item: item.at // _NS),
    _one("start_time_seconds", "gauge", "When it was started.", lambda item: item.started_at // _NS or None),
    _disk("fs_usage_bytes", "Bytes of the writable layer.", "used"),
    _disk("fs_limit_bytes", "Size of the file system it is on.", "size"),
    _disk("fs_inodes_total", "Inodes of that file system.", "inodes"),
    _disk("fs_inodes_free", "Those free.", "inodes_free"),
    _one("spec_cpu_period", "gauge", "CPU period, µs.", lambda item: item.resources.cpu_period or None),
    _one("spec_cpu_quota", "gauge", "CPU quota, µs.", lambda item: max(item.resources.cpu_quota, 0) or None),
    _one("spec_cpu_shares", "gauge", "CPU shares.", lambda item: item.resources.cpu_shares or None),
    _one(
        "spec_memory_limit_bytes",
        "gauge",
        "Memory limit; 0: none.",
        lambda item: max(item.resources.memory_limit_in_bytes, 0),
    ),
    _one(
        "spec_memory_swap_limit_bytes",
        "gauge",
        "Limit of memory and swap; 0: none.",
        lambda item: max(item.resources.memory_swap_limit_in_bytes, 0),
    ),
    _one("spec_memory_reservation_limit_bytes", "gauge", "CRI has none: 0.", lambda item: 0),
)
POD = (*CPU, *MEMORY, *TASKS, *IO, *NETWORK)
"""What a pod as a whole has: its cgroup's figures, with an empty container label, and its network."""
CONTAINER = (*CPU, *MEMORY, *TASKS, *IO, *OWN)
ALL = (*CONTAINER, *NETWORK)


def metrics(figures: tuple[Figure, ...], sample: Sample, base: tuple[str, ...]) -> list[pb.Metric]:
    """The sample as CRI metrics; the timestamp is 0 because nothing is cached (cri-api: Metric.timestamp).

    Args:
        base: values of `BASE_LABELS`.
    """
    kinds: dict[str, Any] = {"counter": pb.COUNTER, "gauge": pb.GAUGE}
    return [
        pb.Metric(
            name=figure.name,
            metric_type=kinds[figure.kind],
            label_values=(*base, *labels),
            value=pb.UInt64Value(value=value),
        )
        for figure in figures
        for labels, value in figure.rows(sample)
    ]
