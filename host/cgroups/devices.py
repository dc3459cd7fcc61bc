"""Which devices may be opened or made (Documentation/admin-guide/cgroup-v1/devices.rst).

v2 has no such controller: its place is taken by an eBPF program, which `devicefilter` makes of the same
rules.
"""

from __future__ import annotations

from host.cgroups.files import Read, Write
from host.cgroups.model import DeviceRule, Resources

HIERARCHIES = ("devices",)

CONTAINER_DEVICES: tuple[DeviceRule, ...] = (
    DeviceRule(kind="c", access="m"),
    DeviceRule(kind="b", access="m"),
    DeviceRule(kind="c", major=1, minor=3),
    DeviceRule(kind="c", major=1, minor=5),
    DeviceRule(kind="c", major=1, minor=7),
    DeviceRule(kind="c", major=1, minor=8),
    DeviceRule(kind="c", major=1, minor=9),
    DeviceRule(kind="c", major=5, minor=0),
    DeviceRule(kind="c", major=5, minor=1),
    DeviceRule(kind="c", major=5, minor=2),
    DeviceRule(kind="c", major=136),
)
"""Every container's: mknod of anything; null, zero, full, random, urandom, tty, console, ptmx, terminals."""

ALL_DEVICES: tuple[DeviceRule, ...] = (DeviceRule(kind="a"),)
"""A privileged container's."""


def plan_v1(resources: Resources, read: Read) -> list[Write]:
    """Deny everything, then allow what is listed; "a" alone allows everything."""
    if resources.devices is None:
        return []
    writes = [Write("devices.deny", "a")]
    for rule in resources.devices:
        name = "devices.allow" if rule.allow else "devices.deny"
        writes.append(Write(name, _line(rule)))
    return writes


def _line(rule: DeviceRule) -> str:
    if rule.kind == "a":
        return "a"
    numbers = ":".join("*" if part is None else str(part) for part in (rule.major, rule.minor))
    return f"{rule.kind} {numbers} {rule.access}"


def plan_v2(resources: Resources, read: Read) -> list[Write]:
    """Nothing that is written to a file: see `devicefilter`."""
    return []


def stats_v1(read: Read) -> dict[str, int]:
    """Nothing is counted here."""
    return {}


stats_v2 = stats_v1
