"""Files of cgroup v2 named by the caller (CRI's `unified`, OCI runtime-spec config-linux.md "Unified").

What has no field of its own comes this way: memory.high and memory.min of memory QoS, memory.oom.group,
io.weight and io.max, cpu.idle and cpu.max.burst, misc.max. They are written last, so that they win over the
fields.
"""

from __future__ import annotations

import re

from host.cgroups.files import Read, Write
from host.cgroups.model import Resources
from host.errors import InputError

HIERARCHIES = ("unified",)
_RESOURCE_FILE = re.compile(r"(cpu|cpuset|memory|pids|io|hugetlb|rdma|misc)\.[A-Za-z0-9_.]+")
"""A file of a controller. The core files (cgroup.*) are not limits: cgroup.procs would move processes."""


def check(resources: Resources) -> None:
    """Refuse names that are not resource files of a cgroup folder.

    Raises:
        InputError: names the key.
    """
    for name in resources.unified:
        if not _RESOURCE_FILE.fullmatch(name):
            raise InputError(f"unified key {name[:80]!r} is not a controller's file, such as memory.high")


def plan_v1(resources: Resources, read: Read) -> list[Write]:
    """v1 has no such files; `check` of the tree has refused them."""
    return []


def plan_v2(resources: Resources, read: Read) -> list[Write]:
    """As they are given; a value of several lines (io.max) is one write a line, as the kernel takes it."""
    pairs = resources.unified.items()
    return [Write(name, line) for name, value in pairs for line in value.splitlines() or [""]]


def stats_v1(read: Read) -> dict[str, int]:
    """Nothing is counted here."""
    return {}


stats_v2 = stats_v1
