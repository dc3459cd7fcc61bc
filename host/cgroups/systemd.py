"""The systemd driver: cgroups that are systemd's units, on a machine with cgroup2 alone.

There systemd is the one writer of the tree (systemd's CGROUP_DELEGATION.md), so a group among its own is made
and removed by asking it. A pod's group is a slice, a container's a transient scope. Limits go both ways: as
properties, which systemd writes again at every reload, and into the files, because some have no property, a
quota is rounded there, and older versions reset memory.oom.group. What is below a scope is delegated to us.

A scope lasts exactly as long as a process is in it: systemd removes it, with the counters in it, the moment
it is empty. So one process that does nothing, the holder, is in it from before the container's first process
until the container's exit is on record. It is in a group of its own below the scope: so it is not among the
container's processes, and whoever lives in the scope may hand controllers down.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from host.cgroups import folders, tree, units
from host.cgroups.files import Write, apply, reader
from host.cgroups.model import CgroupStats, Resources
from host.cgroups.tree import PROCS
from host.errors import Exists, InputError, NotFound, from_errno

HOLDER = "holder"
_OOM_GROUP = "memory.oom.group"
SYSTEM_SLICE = "system.slice"
"""Where a pod is put that names no parent: what containerd and CRI-O do."""


class UnitManager(Protocol):
    """What is used of `host.systemd.Systemd`."""

    def version(self) -> int:
        """Its number, such as 252."""

    def start(self, unit: str, properties: list[units.Property]) -> None:
        """Make and start a transient unit; Exists where there is one."""

    def set_properties(self, unit: str, properties: list[units.Property]) -> None:
        """Change a unit's, until the next boot; NotFound where it is not loaded."""

    def stop(self, unit: str) -> None:
        """Stop and forget a unit; a missing one is fine."""


class SystemdCgroups(tree.Cgroups):
    """`Cgroups` with slices and scopes. Paths that are no unit's are made as by the other driver."""

    driver = "systemd"

    def __init__(self, root: Path | str, manager: UnitManager) -> None:
        """See that the machine has what this takes.

        Raises:
            InputError: cgroup v1, or a systemd before 244.
            HostError: systemd does not answer.
        """
        super().__init__(root)
        if self.mode != "v2":
            raise InputError(
                f"the cgroup driver systemd needs cgroup2 alone at {self.root}, which has {self.mode}: boot "
                "with systemd.unified_cgroup_hierarchy=1, or choose cgroupfs"
            )
        self._manager = manager
        self._version = manager.version()
        if self._version < units.OLDEST:
            raise InputError(
                f"the cgroup driver systemd needs systemd {units.OLDEST}, this is {self._version}: choose "
                "cgroupfs"
            )

    def check_parent(self, parent: str) -> None:
        """Refuse what is no slice.

        Raises:
            InputError: a path, or a name that no slice has.
        """
        if parent and not parent.endswith(".slice"):
            raise InputError(
                f"linux.cgroup_parent {parent[:80]!r} is not a slice, but the cgroup driver here is systemd "
                "(see RuntimeConfig): set the kubelet's cgroupDriver to systemd"
            )
        units.expand_slice(parent or SYSTEM_SLICE)

    def parent_path(self, parent: str) -> str:
        """As the other driver; a pod that names no parent is put where containerd and CRI-O put it."""
        return super().parent_path(parent or SYSTEM_SLICE)

    def container_path(self, parent: str, container_id: str) -> str:
        """A scope, in a slice; a pod that was made under the other driver keeps its groups."""
        if units.unit_of(parent) or not parent:
            return f"{parent}/{units.scope_name(container_id)}"
        return super().container_path(parent, container_id)

    def reaper_path(self, parent: str, sandbox_id: str) -> str:
        """None in a slice: only units belong there, and a scope of its own would be one more for each pod."""
        return "" if units.unit_of(parent) or not parent else super().reaper_path(parent, sandbox_id)

    def nested_path(self, root: str, *names: str) -> str:
        """Slices within each other below the node's root."""
        return units.slice_path([part for part in root.split("/") if part] + list(names))

    def parent_name(self, path: str) -> str:
        """The slice's name alone, as kubelet says it."""
        return units.unit_of(path)

    def needs_holder(self, path: str) -> bool:
        """A scope does."""
        return path.endswith(".scope")

    def create(self, path: str, resources: Resources | None = None, *, holder: int = 0) -> None:
        """Start the unit, then do as the other driver: the limits again, and what systemd has no word for.

        Raises:
            Exists: there is a scope of this name; a slice is given the new limits.
            InputError, HostError: as `Cgroups.create`; TimedOut when systemd does not get it done.
        """
        unit = units.unit_of(path)
        if unit:
            self.check(resources or Resources())
            self._start(unit, path, resources or Resources(), holder)
            if holder:
                self._set_aside(path, holder)
        super().create(path, resources)

    def _set_aside(self, path: str, holder: int) -> None:
        below = f"{path}/{HOLDER}"
        folders.make_folder(self.folders(below)[0])
        self.attach(below, holder)

    def _start(self, unit: str, path: str, resources: Resources, holder: int) -> None:
        is_scope = self.needs_holder(path)
        limits = self._limits(path, resources)
        try:
            if is_scope:
                self._manager.start(unit, units.new_scope(path, holder=holder, limits=limits))
            else:
                self._manager.start(unit, units.new_slice(path, limits=limits))
        except Exists:
            if is_scope:
                raise
            self._manager.set_properties(unit, limits)
        if not self.exists(path):
            raise from_errno(errno.ENOENT, f"cgroup {path} of {unit}", "systemd has started it elsewhere")

    def _limits(self, path: str, resources: Resources) -> list[units.Property]:
        read = reader(self.folders(path)[0])
        writes: list[Write] = []
        for controller in tree.CONTROLLERS:
            writes += controller.plan_v2(resources, read)
        return units.limits(writes, version=self._version, scope=self.needs_holder(path))

    def update(self, path: str, resources: Resources) -> None:
        """Tell systemd, then write the files, so that the files have the last word."""
        self.check(resources)
        unit = units.unit_of(path)
        if unit and self.exists(path) and (limits := self._limits(path, resources)):
            grouped = [Write(_OOM_GROUP, "1")] if reader(self.folders(path)[0])(_OOM_GROUP) == "1" else []
            with suppress(NotFound):  # the container has just ended; the files say so
                self._manager.set_properties(unit, limits)
                apply(self.folders(path)[0], grouped)  # which versions without OOMPolicy of scopes reset
        super().update(path, resources)

    def pids(self, path: str) -> list[int]:
        """Without holders."""
        mine = {pid for folder in self._holders(path) for pid in map(int, reader(folder)(PROCS).split())}
        return [pid for pid in super().pids(path) if pid not in mine]

    def stats(self, path: str) -> CgroupStats:
        """Without holders among the processes; of memory they have next to nothing of their own."""
        found = super().stats(path)
        return replace(found, pids=max(found.pids - len(self._holders(path)), 0))

    def _holders(self, path: str) -> list[Path]:
        """The groups of holders in a scope, or in the scopes of a pod's slice."""
        folder = self.folders(path)[0]
        pattern = HOLDER if self.needs_holder(path) else f"*.scope/{HOLDER}"
        return list(folder.glob(pattern)) if units.unit_of(path) else []

    def remove(self, path: str, *, timeout: float = 2.0) -> None:
        """As the other driver, and then no unit is left either."""
        super().remove(path, timeout=timeout)
        unit = units.unit_of(path)
        if unit:
            self._manager.stop(unit)
