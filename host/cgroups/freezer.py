"""Frozen cgroups, which on v1 keep a killed process alive.

A process in v1's FROZEN state gets no signal, not even SIGKILL, before it is thawed
(Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst). A frozen cgroup of v2 lets killed processes end
(Documentation/admin-guide/cgroup-v2.rst, cgroup.freeze), so nothing is done there.
"""

from __future__ import annotations

from pathlib import Path

from host.cgroups.files import Read, Write, reader

HIERARCHY = "freezer"
STATE = "freezer.state"
_OWN = "freezer.self_freezing"
_THAWED = "THAWED"


def plan_thaw(read: Read) -> list[Write]:
    """What lifts the cgroup's own freeze; nothing where it has none."""
    return [Write(STATE, _THAWED, optional=True)] if read(_OWN) == "1" else []


def frozen_by(tree: Path, folder: Path) -> Path | None:
    """The topmost cgroup whose freeze holds this one, itself included; None when it is not frozen.

    Args:
        tree: the mount of the freezer hierarchy.
        folder: the cgroup's folder below it.
    """
    above = [parent for parent in folder.parents if parent != tree and parent.is_relative_to(tree)]
    for candidate in (*reversed(above), folder):
        if reader(candidate)(_OWN) == "1":
            return candidate
    return None
