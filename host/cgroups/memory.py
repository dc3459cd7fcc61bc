"""Memory and swap (Documentation/admin-guide/cgroup-v1/memory.rst, admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import errno

from host.cgroups.files import Read, Write, keyed, number
from host.cgroups.model import Resources
from host.errors import InputError, from_errno

HIERARCHIES = ("memory",)


def check(resources: Resources) -> None:
    """Refuse a sum of memory and swap that leaves less than the memory limit.

    Raises:
        InputError: names both figures.
    """
    limit, swap = resources.memory_limit, resources.memory_swap_limit
    if limit is not None and swap is not None and swap > 0 and not 0 < limit <= swap:
        raise InputError(
            f"memory_swap_limit_in_bytes {swap} counts memory and swap together: it needs a "
            f"memory_limit_in_bytes that is no larger, not {limit}"
        )


def plan_v1(resources: Resources, read: Read) -> list[Write]:
    """The kernel wants limit <= memory+swap limit at every moment: raising starts with the latter.

    Raises:
        InputError: a memory limit above the sum in force, which the kernel would call an invalid argument.
    """
    writes = []
    limit, swap = resources.memory_limit, resources.memory_swap_limit
    if limit is not None:
        writes.append(Write("memory.limit_in_bytes", str(limit or -1)))
    if swap is not None:
        writes.append(Write("memory.memsw.limit_in_bytes", str(swap or -1), optional=True))
    present = number(read("memory.memsw.limit_in_bytes"))
    lifts = limit is not None and (limit <= 0 or limit > present)
    if present and lifts and swap is None:
        raise InputError(
            f"memory_limit_in_bytes {limit} is above the limit of memory and swap, {present}: give "
            "memory_swap_limit_in_bytes too"
        )
    return writes[::-1] if present and lifts else writes


def plan_v2(resources: Resources, read: Read) -> list[Write]:
    """memory.swap.max is swap alone, so CRI's sum loses the memory limit, the new one or the one in force.

    Raises:
        InputError: a sum of memory and swap where there is no memory limit, or a larger one.
        Busy: a memory limit below what cannot be reclaimed. The kernel would kill until it fits; v1 refuses
            it with EBUSY, and so is this refused.
    """
    writes = []
    limit, swap = resources.memory_limit, resources.memory_swap_limit
    if limit is not None:
        if 0 < limit < (held := _unreclaimable(read)):
            raise from_errno(errno.EBUSY, f"memory limit {limit}", f"{held} bytes are in use")
        writes.append(Write("memory.max", _max(limit)))
    if swap is not None:
        writes.append(Write("memory.swap.max", _swap_alone(swap, limit, read), optional=True))
    if resources.memory_min is not None:
        writes.append(Write("memory.min", str(resources.memory_min)))
    if resources.memory_high is not None:
        writes.append(Write("memory.high", _max(resources.memory_high)))
    if resources.oom_group is not None:
        writes.append(Write("memory.oom.group", str(int(resources.oom_group)), optional=True))
    return writes


def _unreclaimable(read: Read) -> int:
    """Bytes in use that are not page cache of files."""
    found = keyed(read("memory.stat"))
    cache = found.get("active_file", 0) + found.get("inactive_file", 0)
    return max(number(read("memory.current")) - cache, 0)


def _swap_alone(swap: int, limit: int | None, read: Read) -> str:
    if swap <= 0:
        return "max"
    memory = number(read("memory.max")) if limit is None else limit
    if not 0 < memory <= swap:
        raise InputError(
            f"memory_swap_limit_in_bytes {swap} counts memory and swap together: it needs a "
            f"memory_limit_in_bytes that is no larger (in force: {memory or 'none'})"
        )
    return str(swap - memory)


def _max(limit: int) -> str:
    return str(limit) if limit > 0 else "max"


def stats_v1(read: Read) -> dict[str, int | None]:
    """Hierarchical figures (`total_*`), as kubelet's cAdvisor reads them."""
    found = keyed(read("memory.stat"))
    usage = number(read("memory.usage_in_bytes"))
    limit, both = number(read("memory.limit_in_bytes")), number(read("memory.memsw.limit_in_bytes"))
    return {
        "memory_usage": usage,
        "memory_working_set": max(usage - found.get("total_inactive_file", 0), 0),
        "memory_rss": found.get("total_rss", 0),
        "memory_cache": found.get("total_cache", 0),
        "memory_mapped_file": found.get("total_mapped_file", 0),
        "memory_active_file": found.get("total_active_file", 0),
        "memory_inactive_file": found.get("total_inactive_file", 0),
        "memory_kernel": number(read("memory.kmem.usage_in_bytes")),
        "memory_peak": number(read("memory.max_usage_in_bytes")),
        "memory_limit_hits": number(read("memory.failcnt")),
        "memory_limit": limit,
        "memory_page_faults": found.get("total_pgfault", 0),
        "memory_major_page_faults": found.get("total_pgmajfault", 0),
        "swap_usage": found.get("total_swap", 0),
        "swap_limit": max(both - limit, 0) if both else None,
        "oom_kills": oom_kills_v1(read),
    }


def stats_v2(read: Read) -> dict[str, int | None]:
    """memory.stat is hierarchical in v2."""
    found = keyed(read("memory.stat"))
    usage = number(read("memory.current"))
    return {
        "memory_usage": usage,
        "memory_working_set": max(usage - found.get("inactive_file", 0), 0),
        "memory_rss": found.get("anon", 0),
        "memory_cache": found.get("file", 0),
        "memory_mapped_file": found.get("file_mapped", 0),
        "memory_active_file": found.get("active_file", 0),
        "memory_inactive_file": found.get("inactive_file", 0),
        "memory_kernel": found.get("kernel", found.get("kernel_stack", 0) + found.get("slab", 0)),
        "memory_peak": number(read("memory.peak")),
        "memory_limit_hits": keyed(read(OOM_FILE_V2)).get("max", 0),
        "memory_limit": number(read("memory.max")),
        "memory_page_faults": found.get("pgfault", 0),
        "memory_major_page_faults": found.get("pgmajfault", 0),
        "swap_usage": number(read("memory.swap.current")),
        "swap_limit": int(swap) if (swap := read("memory.swap.max")).isdecimal() else None,
        "oom_kills": oom_kills_v2(read),
    }


OOM_FILE_V1 = "memory.oom_control"
OOM_FILE_V2 = "memory.events"
"""Both have an `oom_kill` line that counts processes of this cgroup killed for want of memory."""


def oom_kills_v1(read: Read) -> int:
    """Kernel 4.13 and later."""
    return keyed(read(OOM_FILE_V1)).get("oom_kill", 0)


def oom_kills_v2(read: Read) -> int:
    """Includes cgroups below."""
    return keyed(read(OOM_FILE_V2)).get("oom_kill", 0)
