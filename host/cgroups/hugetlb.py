"""Huge pages by size (Documentation/admin-guide/cgroup-v1/hugetlb.rst)."""

from __future__ import annotations

import re

from host.cgroups.files import Read, Write
from host.cgroups.model import Resources
from host.errors import InputError

HIERARCHIES = ("hugetlb",)
_PAGE_SIZE = re.compile(r"[1-9][0-9]*[KMGT]B")


def check(resources: Resources) -> None:
    """Refuse what is no page size: it becomes part of a file name.

    Raises:
        InputError: names the size.
    """
    for size in resources.hugepage_limits:
        if not _PAGE_SIZE.fullmatch(size):
            raise InputError(f"hugepage_limits: page_size {size[:40]!r} must be like 2MB or 1GB")


def plan_v1(resources: Resources, read: Read) -> list[Write]:
    """Sizes this kernel does not have are passed over: there is nothing to limit."""
    return _plan(resources, "limit_in_bytes")


def plan_v2(resources: Resources, read: Read) -> list[Write]:
    """The same files under v2's name."""
    return _plan(resources, "max")


def _plan(resources: Resources, name: str) -> list[Write]:
    """The reservation limit (rsvd, kernel 5.7) makes mmap fail instead of a later page fault."""
    writes = []
    for size, limit in resources.hugepage_limits.items():
        writes.append(Write(f"hugetlb.{size}.{name}", str(limit), optional=True))
        writes.append(Write(f"hugetlb.{size}.rsvd.{name}", str(limit), optional=True))
    return writes


def stats_v1(read: Read) -> dict[str, int]:
    """Not part of the figures kubelet asks a runtime for."""
    return {}


stats_v2 = stats_v1
