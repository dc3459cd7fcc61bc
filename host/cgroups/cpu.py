"""CPU time: shares and quota (Documentation/scheduler/sched-bwc.rst, admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import math

from host.cgroups.files import Read, Write, keyed, number
from host.cgroups.model import Resources

HIERARCHIES = ("cpu", "cpuacct")
MIN_SHARES, MAX_SHARES = 2, 262_144
MAX_WEIGHT = 10_000
DEFAULT_PERIOD_US = 100_000


def weight(shares: int) -> int:
    """v1 shares as a v2 weight, on the curve runc and crun use since 2025 (opencontainers/cgroups #20).

    The curve passes through (2, 1), (1024, 100) and (262144, 10000), so one CPU keeps the default weight.
    """
    if shares <= MIN_SHARES:
        return 1
    if shares >= MAX_SHARES:
        return MAX_WEIGHT
    exponent = math.log2(shares)
    return math.ceil(10 ** ((exponent * exponent + 125 * exponent) / 612 - 7 / 34))


def plan_v1(resources: Resources, read: Read) -> list[Write]:
    """The period goes first: a quota is checked against the period in force."""
    writes = []
    if resources.cpu_shares is not None:
        writes.append(Write("cpu.shares", str(max(resources.cpu_shares, MIN_SHARES))))
    if resources.cpu_period_us:
        writes.append(Write("cpu.cfs_period_us", str(resources.cpu_period_us)))
    if resources.cpu_quota_us is not None:
        writes.append(Write("cpu.cfs_quota_us", str(resources.cpu_quota_us or -1)))
    return writes


def plan_v2(resources: Resources, read: Read) -> list[Write]:
    """cpu.max holds quota and period together; the one not asked for keeps its present value."""
    writes = []
    if resources.cpu_shares is not None:
        writes.append(Write("cpu.weight", str(weight(resources.cpu_shares))))
    if resources.cpu_quota_us is not None or resources.cpu_period_us:
        present, _, present_period = (read("cpu.max") or f"max {DEFAULT_PERIOD_US}").partition(" ")
        quota = resources.cpu_quota_us
        amount = present if quota is None else str(quota) if quota > 0 else "max"
        period = resources.cpu_period_us or present_period or DEFAULT_PERIOD_US
        writes.append(Write("cpu.max", f"{amount} {period}"))
    return writes


def stats_v1(read: Read) -> dict[str, int]:
    """`read` sees the files of both hierarchies."""
    throttling = keyed(read("cpu.stat"))
    return {
        "cpu_usage_ns": number(read("cpuacct.usage")),
        "cpu_user_ns": number(read("cpuacct.usage_user")),
        "cpu_system_ns": number(read("cpuacct.usage_sys")),
        "cpu_periods": throttling.get("nr_periods", 0),
        "cpu_throttled_periods": throttling.get("nr_throttled", 0),
        "cpu_throttled_ns": throttling.get("throttled_time", 0),
    }


def stats_v2(read: Read) -> dict[str, int]:
    """cpu.stat counts in microseconds."""
    found = keyed(read("cpu.stat"))
    return {
        "cpu_usage_ns": found.get("usage_usec", 0) * 1000,
        "cpu_user_ns": found.get("user_usec", 0) * 1000,
        "cpu_system_ns": found.get("system_usec", 0) * 1000,
        "cpu_periods": found.get("nr_periods", 0),
        "cpu_throttled_periods": found.get("nr_throttled", 0),
        "cpu_throttled_ns": found.get("throttled_usec", 0) * 1000,
    }
