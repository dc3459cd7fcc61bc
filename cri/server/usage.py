"""Cgroup figures as CRI's usage messages. Pure, but for `Rates`, which remembers the last sample.

Fields of figures this kernel does not have stay unset: to the kubelet, 0 and unknown are not the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from host.cgroups import CgroupStats, Pressure
from proto.cri import runtime_pb2 as pb

_SUMMED = (
    "cpu_usage_ns",
    "memory_usage",
    "memory_working_set",
    "memory_rss",
    "memory_page_faults",
    "memory_major_page_faults",
    "pids",
)
WINDOW_NS = 1_000_000_000
"""Two clients that ask one after the other must not make a rate out of a few milliseconds."""


@dataclass(frozen=True)
class _Sample:
    at: int
    usage_ns: int
    nano_cores: int | None


class Rates:
    """CPU use between two looks at the same cgroup (CpuUsage.usage_nano_cores)."""

    def __init__(self) -> None:
        """Nothing was looked at."""
        self._samples: dict[str, _Sample] = {}

    def nano_cores(self, path: str, usage_ns: int, at: int) -> int | None:
        """CPU nanoseconds a second since the last sample at least `WINDOW_NS` ago; None at first sight.

        Args:
            path: the cgroup.
            usage_ns: CPU time it has used up.
            at: now, nanoseconds since 1970.
        """
        last = self._samples.get(path)
        if last is not None and 0 <= at - last.at < WINDOW_NS and usage_ns >= last.usage_ns:
            return last.nano_cores
        rate = None
        if last is not None and at > last.at and usage_ns >= last.usage_ns:
            rate = (usage_ns - last.usage_ns) * 1_000_000_000 // (at - last.at)
        self._samples[path] = _Sample(at, usage_ns, rate)
        return rate

    def forget(self, path: str) -> None:
        """The cgroup was removed."""
        self._samples.pop(path, None)


def total(parts: Sequence[CgroupStats]) -> CgroupStats:
    """What several cgroups use together: times, memory and processes; of one alone all its figures."""
    if len(parts) == 1:
        return parts[0]
    return CgroupStats(**{name: sum(getattr(part, name) for part in parts) for name in _SUMMED})


def psi(pressure: Pressure | None) -> pb.PsiStats | None:
    """Stall times in nanoseconds, as CRI has them; None where the kernel has none."""
    if pressure is None:
        return None
    both = {"Some": pressure.some, "Full": pressure.full}
    return pb.PsiStats(
        **{
            name: pb.PsiData(
                Total=stall.total_us * 1000, Avg10=stall.avg10, Avg60=stall.avg60, Avg300=stall.avg300
            )
            for name, stall in both.items()
        }
    )


def cpu_usage(stats: CgroupStats, nano_cores: int | None, at: int) -> pb.CpuUsage:
    """CPU time since the cgroup was made, and now."""
    usage = pb.CpuUsage(
        timestamp=at,
        usage_core_nano_seconds=pb.UInt64Value(value=stats.cpu_usage_ns),
        psi=psi(stats.cpu_pressure),
    )
    if nano_cores is not None:
        usage.usage_nano_cores.value = nano_cores
    return usage


def memory_usage(stats: CgroupStats, at: int) -> pb.MemoryUsage:
    """Memory now; "available" only where there is a limit to count from."""
    usage = pb.MemoryUsage(
        timestamp=at,
        working_set_bytes=pb.UInt64Value(value=stats.memory_working_set),
        usage_bytes=pb.UInt64Value(value=stats.memory_usage),
        rss_bytes=pb.UInt64Value(value=stats.memory_rss),
        page_faults=pb.UInt64Value(value=stats.memory_page_faults),
        major_page_faults=pb.UInt64Value(value=stats.memory_major_page_faults),
        psi=psi(stats.memory_pressure),
    )
    if stats.memory_limit:
        usage.available_bytes.value = max(0, stats.memory_limit - stats.memory_working_set)
    return usage


def swap_usage(stats: CgroupStats, at: int) -> pb.SwapUsage:
    """Swap now; "available" only where there is a limit to count from."""
    usage = pb.SwapUsage(timestamp=at, swap_usage_bytes=pb.UInt64Value(value=stats.swap_usage))
    if stats.swap_limit is not None:
        usage.swap_available_bytes.value = max(0, stats.swap_limit - stats.swap_usage)
    return usage


def io_usage(stats: CgroupStats, at: int) -> pb.IoUsage:
    """Stalls over input and output, which is all CRI asks for."""
    return pb.IoUsage(timestamp=at, psi=psi(stats.io_pressure))
