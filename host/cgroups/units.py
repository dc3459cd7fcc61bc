"""Names and properties of systemd's units for cgroups. Pure: what is sent over D-Bus is decided here.

A slice is an inner node of the tree, a scope a leaf with processes that systemd has not started itself
(systemd.slice(5), systemd.scope(5)). A dash in a slice's name is a level: `a-b.slice` is in `a.slice`.
Properties are translated from the very writes that the controllers plan for the cgroup's files, so that file
and property never disagree: systemd writes its properties into the files again whenever it is told to reload,
and what it had not been told of would be lost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from host.cgroups.files import Write
from host.errors import InputError

Property = tuple[str, tuple[str, Any]]
"""Name, and D-Bus signature with value."""

SCOPE_PREFIX = "cri-nodelet-"
ROOT_SLICE = "-.slice"
OLDEST = 244
"""The first systemd that has a property for each of the files below (AllowedCPUs came last)."""
OOM_POLICY_OF_SCOPES = 253
INFINITY = (1 << 64) - 1
_MAX_NAME = 255
_PART = r"[A-Za-z0-9:_.\\@]+"
_SLICE = re.compile(rf"{_PART}(-{_PART})*\.slice")
_SECOND_US = 1_000_000
_PERCENT_US = 10_000
"""A percent of a CPU: systemd keeps CPUQuota= in whole percents where it writes a unit down."""


def expand_slice(name: str) -> str:
    """A slice's cgroup as a path: `a-b.slice` is `/a.slice/a-b.slice`; the root slice is empty.

    Args:
        name: of the unit, as a kubelet gives it (`kubepods-burstable-pod<uid>.slice`), or its whole path.

    Raises:
        InputError: not a slice's name, or a path that is not where systemd has that slice.
    """
    folder, _, base = name.rpartition("/")
    if base == ROOT_SLICE:
        return ""
    if not _SLICE.fullmatch(base) or len(base) > _MAX_NAME:
        raise InputError(
            f"{name[:80]!r} is not the name of a systemd slice, such as kubepods-burstable.slice"
        )
    parts = base.removesuffix(".slice").split("-")
    path = "".join(f"/{'-'.join(parts[: end + 1])}.slice" for end in range(len(parts)))
    if folder.strip("/") and name.strip("/") != path.strip("/"):
        raise InputError(f"systemd has the slice {base[:80]!r} at {path[:200]}, not at {name[:200]!r}")
    return path


def slice_path(names: Iterable[str]) -> str:
    """The cgroup of nested names: (kubepods, pod1-2) is `/kubepods.slice/kubepods-pod1_2.slice`.

    A dash inside a name becomes an underscore, as kubelet escapes a pod's uid (pkg/kubelet/cm,
    CgroupName.ToSystemd).

    Raises:
        InputError: a name that no unit can have.
    """
    parts = [name.replace("-", "_") for name in names]
    return expand_slice(f"{'-'.join(parts)}.slice" if parts else ROOT_SLICE)


def scope_name(container_id: str) -> str:
    """The scope of a container: `cri-nodelet-<id>.scope`; containerd and CRI-O have their names there."""
    return f"{SCOPE_PREFIX}{container_id}.scope"


def unit_of(path: str) -> str:
    """The unit whose cgroup a path is; empty for a group that is nobody's unit."""
    base = path.rstrip("/").rpartition("/")[2]
    return base if base.endswith((".slice", ".scope")) else ""


def slice_of(path: str) -> str:
    """The slice that a unit's cgroup is in."""
    return unit_of(path.rstrip("/").rpartition("/")[0]) or ROOT_SLICE


def new_scope(path: str, *, holder: int, limits: Iterable[Property]) -> list[Property]:
    """Properties of a container's scope.

    Delegate: what is below is ours (cgroups of execs), and the controllers are switched on for it.
    DefaultDependencies off: it is not stopped early at shutdown, before the agent has ended its pods.
    TasksMax: systemd's default for every unit, 15 % of what the machine can have, is not the pod's limit.
    Devices are not mentioned: on cgroup2 systemd attaches a program of its own only where it was given rules,
    so that it neither replaces nor drops the one that is ours.

    Args:
        holder: the process that is to be in it; there is no scope without one.
        limits: from `limits`; they win.
    """
    defaults: list[Property] = [
        (
            "Description",
            ("s", f"container {unit_of(path).removeprefix(SCOPE_PREFIX).removesuffix('.scope')}"),
        ),
        ("Slice", ("s", slice_of(path))),
        ("PIDs", ("au", [holder])),
        ("Delegate", ("b", True)),
        ("CollectMode", ("s", "inactive-or-failed")),
        ("TasksMax", ("t", INFINITY)),
    ]
    return merged(defaults, _ACCOUNTED, limits)


def new_slice(path: str, *, limits: Iterable[Property]) -> list[Property]:
    """Properties of a pod's slice or a level above; systemd makes the slices it is in."""
    return merged([("Description", ("s", f"pods below {unit_of(path)}"))], _ACCOUNTED, limits)


_ACCOUNTED: tuple[Property, ...] = (
    ("DefaultDependencies", ("b", False)),
    ("CPUAccounting", ("b", True)),
    ("MemoryAccounting", ("b", True)),
    ("IOAccounting", ("b", True)),
    ("TasksAccounting", ("b", True)),
)
"""Accounting is what switches the controllers on, in the slices above too."""


def merged(*groups: Iterable[Property]) -> list[Property]:
    """One value a name; the last one given wins."""
    return list(dict(item for group in groups for item in group).items())


def limits(writes: Iterable[Write], *, version: int, scope: bool) -> list[Property]:
    """The properties that say what these writes to a cgroup's files do; a later write of a file wins.

    A file without a property (hugetlb.*, misc.*, cpu.idle) is none of systemd's, and stays as written.

    Args:
        version: systemd's.
        scope: they are for a scope, which takes an OOMPolicy from 253 on; a slice never does.
    """
    found: dict[str, tuple[str, Any]] = {}
    for write in writes:
        if write.name in _NUMBERS:
            found[_NUMBERS[write.name]] = ("t", _number(write.value))
        elif write.name in _SETS:
            found[_SETS[write.name]] = ("ay", bitmask(write.value))
        elif write.name == "cpu.max":
            found.update(_quota(write.value))
        elif write.name == "memory.oom.group" and scope and version >= OOM_POLICY_OF_SCOPES:
            found["OOMPolicy"] = ("s", "kill" if write.value.strip() == "1" else "continue")
    return list(found.items())


_NUMBERS = {
    "cpu.weight": "CPUWeight",
    "memory.min": "MemoryMin",
    "memory.low": "MemoryLow",
    "memory.high": "MemoryHigh",
    "memory.max": "MemoryMax",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
}
_SETS = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}


def _number(value: str) -> int:
    text = value.strip()
    if text == "max":
        return INFINITY
    if not text.isdecimal():
        raise InputError(f"unified value {value[:80]!r} is neither a number nor max")
    return min(int(text), INFINITY)


def _quota(value: str) -> list[Property]:
    """cpu.max as time a second, rounded up to a percent: a container never gets less than its file says."""
    quota, _, period = value.strip().partition(" ")
    period_us = int(period) if period.isdecimal() and int(period) else 100_000
    if quota == "max":
        return [("CPUQuotaPerSecUSec", ("t", INFINITY)), ("CPUQuotaPeriodUSec", ("t", period_us))]
    a_second = _number(quota) * _SECOND_US / period_us
    rounded = math.ceil(a_second / _PERCENT_US) * _PERCENT_US
    return [("CPUQuotaPerSecUSec", ("t", rounded)), ("CPUQuotaPeriodUSec", ("t", period_us))]


def bitmask(numbers: str) -> bytes:
    """A list such as 0-2,8 as bits, the lowest of the first byte being 0.

    Raises:
        InputError: not such a list.
    """
    found = 0
    for part in filter(None, numbers.strip().split(",")):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not first.isdecimal() or not last.isdecimal() or len(part) > 11:
            raise InputError(f"{numbers[:80]!r} is not a list such as 0-3,7")
        for number in range(int(first), int(last) + 1):
            found |= 1 << number
    return found.to_bytes((found.bit_length() + 7) // 8, "little")
