"""What cgroups are asked for and what they tell: plain frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class DeviceRule:
    """Which device a cgroup may use; major or minor None: every one."""

    kind: str
    """c, b, or a for all devices."""
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"
    allow: bool = True


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Limits of one cgroup; None leaves the kernel's value as it is.

    The CPU share is in v1 units on every kernel (2..262144; 1024 is one CPU) and is converted for v2 as
    runc and kubelet do. Memory and huge page sizes are bytes; -1 lifts the limit.
    """

    cpu_shares: int | None = None
    cpu_quota_us: int | None = None
    """CPU time per period; -1 lifts the limit."""
    cpu_period_us: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    memory_limit: int | None = None
    memory_swap_limit: int | None = None
    """Memory and swap together, as in v1 and CRI."""
    memory_min: int | None = None
    """v2 only (memory QoS); left alone on v1."""
    memory_high: int | None = None
    """v2 only (memory QoS); left alone on v1."""
    oom_group: bool | None = None
    """v2 only: an out-of-memory kill takes the whole cgroup."""
    pids_limit: int | None = None
    """-1 or 0 lifts the limit."""
    hugepage_limits: Mapping[str, int] = field(default_factory=dict)
    """Page size as the kernel names it (2MB) to bytes."""
    unified: Mapping[str, str] = field(default_factory=dict)
    """v2 only: file name to content, written last, as in CRI."""
    devices: tuple[DeviceRule, ...] | None = None
    """What may be used, everything else being denied; None: no change. v2: as the cgroup is made."""


@dataclass(frozen=True, kw_only=True)
class DeviceIo:
    """What went from and to one block device."""

    major: int
    minor: int
    read_bytes: int = 0
    written_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, kw_only=True)
class Stall:
    """How long tasks waited: percent of the last 10, 60 and 300 seconds, and microseconds in all."""

    avg10: float = 0.0
    avg60: float = 0.0
    avg300: float = 0.0
    total_us: int = 0


@dataclass(frozen=True, kw_only=True)
class Pressure:
    """Stalls over one resource."""

    some: Stall
    """At least one task waited."""
    full: Stall
    """All of them did at once."""


@dataclass(frozen=True, kw_only=True)
class CgroupStats:
    """What a cgroup has used up; 0 where the kernel has no such figure."""

    cpu_usage_ns: int = 0
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    cpu_periods: int = 0
    cpu_throttled_periods: int = 0
    cpu_throttled_ns: int = 0
    memory_usage: int = 0
    memory_working_set: int = 0
    """Usage without inactive page cache, as cAdvisor and kubelet define it."""
    memory_rss: int = 0
    memory_cache: int = 0
    memory_mapped_file: int = 0
    memory_active_file: int = 0
    memory_inactive_file: int = 0
    memory_kernel: int = 0
    memory_peak: int = 0
    """The most it has used at once; v2 counts it since kernel 5.19."""
    memory_limit: int = 0
    """0: none."""
    memory_limit_hits: int = 0
    """How often the limit was met."""
    memory_page_faults: int = 0
    memory_major_page_faults: int = 0
    swap_usage: int = 0
    swap_limit: int | None = None
    """Of swap alone; None: unlimited, or not accounted."""
    pids: int = 0
    pids_limit: int = 0
    """0: none."""
    oom_kills: int = 0
    io: tuple[DeviceIo, ...] = ()
    cpu_pressure: Pressure | None = None
    """None: the kernel has no PSI, or no cgroup2."""
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None
