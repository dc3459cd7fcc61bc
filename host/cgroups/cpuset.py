"""CPUs and memory nodes (Documentation/admin-guide/cgroup-v1/cpusets.rst)."""

from __future__ import annotations

from host.cgroups.files import Read, Write
from host.cgroups.model import Resources

HIERARCHIES = ("cpuset",)
FILES = ("cpuset.cpus", "cpuset.mems")


def plan_v1(resources: Resources, read: Read) -> list[Write]:
    """The same files in both versions."""
    pairs = zip(FILES, (resources.cpuset_cpus, resources.cpuset_mems), strict=True)
    return [Write(name, value) for name, value in pairs if value]


plan_v2 = plan_v1


def plan_fill_in(parent: Read, child: Read) -> list[Write]:
    """What a new v1 cpuset must copy from its parent: an empty one refuses processes with ENOSPC."""
    return [Write(name, parent(name)) for name in FILES if not child(name) and parent(name)]


def stats_v1(read: Read) -> dict[str, int]:
    """Nothing is counted here."""
    return {}


stats_v2 = stats_v1
