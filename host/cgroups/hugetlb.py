"""Huge pages by size (Documentation/admin-guide/cgroup-v1/hugetlb.rst)."""

from __future__ import annotations

from host.cgroups.files import Read, Write
from host.cgroups.model import Resources

HIERARCHIES = ("hugetlb",)


def plan_v1(resources: Resources, read: Read) -> list[Write]:
    """Sizes this kernel does not have are passed over: there is nothing to limit."""
    limits = resources.hugepage_limits.items()
    return [Write(f"hugetlb.{size}.limit_in_bytes", str(limit), optional=True) for size, limit in limits]


def plan_v2(resources: Resources, read: Read) -> list[Write]:
    """The reservation limit (rsvd) makes mmap fail instead of a later page fault."""
    writes = []
    for size, limit in resources.hugepage_limits.items():
        writes.append(Write(f"hugetlb.{size}.max", str(limit), optional=True))
        writes.append(Write(f"hugetlb.{size}.rsvd.max", str(limit), optional=True))
    return writes


def stats_v1(read: Read) -> dict[str, int]:
    """Not part of the figures kubelet asks a runtime for."""
    return {}


stats_v2 = stats_v1
