"""Number of tasks (Documentation/admin-guide/cgroup-v1/pids.rst); the same files in both versions."""

from __future__ import annotations

from host.cgroups.files import Read, Write, number
from host.cgroups.model import Resources

HIERARCHIES = ("pids",)


def plan_v1(resources: Resources, read: Read) -> list[Write]:
    """-1 and 0 both lift the limit, as in CRI."""
    if resources.pids_limit is None:
        return []
    return [Write("pids.max", str(resources.pids_limit) if resources.pids_limit > 0 else "max")]


plan_v2 = plan_v1


def stats_v1(read: Read) -> dict[str, int]:
    """Tasks now, and the limit."""
    return {"pids": number(read("pids.current")), "pids_limit": number(read("pids.max"))}


stats_v2 = stats_v1
