"""The cgroup trees of this machine: make, limit, fill, read, kill and remove one cgroup in all of them.

Not for finding out which cgroup a process is in, and not for the machine's own cgroups: callers pass paths
below a parent of their own. Calls block for microseconds to a few milliseconds (the first attach after a
while waits for an RCU grace period).
"""

from __future__ import annotations

import errno
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from host import holders
from host.cgroups import (
    cpu,
    cpuset,
    devicefilter,
    devices,
    freezer,
    hugetlb,
    io,
    memory,
    pids,
    pressure,
    unified,
)
from host.cgroups.files import Read, Write, apply, reader
from host.cgroups.folders import (
    add_cpuset,
    enable_controllers,
    in_trees,
    make_folder,
    open_to_readers,
    remove_tree,
    steps,
    subtree,
)
from host.cgroups.model import CgroupStats, Resources
from host.cgroups.units import expand_slice
from host.errors import Busy, InputError, NotFound, from_oserror

Mode = Literal["v1", "hybrid", "v2"]
CONTROLLERS: tuple[ModuleType, ...] = (cpu, cpuset, memory, pids, hugetlb, io, devices, unified)
PROCS = "cgroup.procs"
_RETRY_S = 0.005


class Cgroups:
    """One interface over every hierarchy mounted below `root`; itself the driver called cgroupfs."""

    driver: Literal["cgroupfs", "systemd"] = "cgroupfs"

    def __init__(self, root: Path | str = "/sys/fs/cgroup") -> None:
        """Look at what is mounted; nothing is changed.

        Args:
            root: cgroup2's mount, or the folder that has a mount per v1 controller.
        """
        self.root = Path(root)
        self.trees: tuple[Path, ...] = ()
        """The mount of every hierarchy a cgroup exists in; v2 first where there is one."""
        self.shown: tuple[Path, ...] = ()
        """Those of them that a container is shown: with controllers."""
        self._by_controller: dict[str, Path] = {}
        if (self.root / "cgroup.controllers").exists():
            self.mode: Mode = "v2"
            self.trees = self.shown = (self.root,)
            return
        self.mode = "v1"
        self._find_v1()

    def _find_v1(self) -> None:
        """A v1 mount's folder is named after its controllers; links like cpu -> cpu,cpuacct are skipped."""
        v1, unified = [], []
        names = sorted(os.listdir(self.root)) if self.root.is_dir() else []
        for tree in (self.root / name for name in names):
            if tree.is_symlink() or not (tree / PROCS).exists():
                continue
            if (tree / "cgroup.controllers").exists():
                self.mode = "hybrid"
                unified.append(tree)
                continue
            v1.append(tree)
            for controller in tree.name.split(","):
                self._by_controller[controller] = tree
        self.trees = (*unified, *v1)
        # A container that finds a cgroup2 mount takes it for the one with the limits; runc shows none either.
        self.shown = tuple(v1)

    @property
    def controllers(self) -> frozenset[str]:
        """Names of the controllers that can limit something here."""
        if self.mode == "v2":
            return frozenset(reader(self.root)("cgroup.controllers").split())
        return frozenset(self._by_controller)

    def folders(self, path: str) -> list[Path]:
        """The cgroup's folder in every hierarchy, existing or not.

        Raises:
            InputError: the path is the root itself or has a segment that leads elsewhere.
        """
        return list(in_trees(self.trees, path))

    def check_parent(self, parent: str) -> None:
        """Refuse a cgroup_parent of CRI's that is written for the other driver.

        Raises:
            InputError: it names a slice of systemd's.
        """
        if parent.endswith(".slice"):
            raise InputError(
                f"linux.cgroup_parent {parent[:80]!r} is a slice of systemd's, but the cgroup driver here is "
                "cgroupfs (see RuntimeConfig): set the kubelet's cgroupDriver to cgroupfs"
            )

    def parent_path(self, parent: str) -> str:
        """The cgroup behind a cgroup_parent, whichever driver it was written for; empty for none."""
        if parent.endswith(".slice"):
            return expand_slice(parent)
        return f"/{parent.strip('/')}" if parent.strip("/") else ""

    def pod_path(self, parent: str) -> str:
        """The cgroup that a pod has for itself; empty for one that names no parent."""
        return self.parent_path(parent) if parent else ""

    def container_path(self, parent: str, container_id: str) -> str:
        """The cgroup of a container below its pod's (from `parent_path`)."""
        return f"{parent}/{container_id}"

    def reaper_path(self, parent: str, sandbox_id: str) -> str:
        """The cgroup of a pod's own process; empty: it stays where our supervisors are."""
        return f"{parent}/pod-init-{sandbox_id[:12]}"

    def nested_path(self, root: str, *names: str) -> str:
        """The cgroup of names within each other below a node's root cgroup."""
        return "/".join((root.rstrip("/"), *names))

    def parent_name(self, path: str) -> str:
        """A cgroup as CRI's cgroup_parent names it."""
        return path

    def needs_holder(self, path: str) -> bool:
        """Whether the cgroup is made only with a process in it, and lasts only as long as there is one."""
        return False

    def exists(self, path: str) -> bool:
        """Whether the cgroup is there in any hierarchy."""
        return any(folder.is_dir() for folder in self.folders(path))

    def create(self, path: str, resources: Resources | None = None, *, holder: int = 0) -> None:
        """Make the cgroup and its parents where missing, and set limits on it.

        Args:
            holder: a process to put into it, where `needs_holder` says so.

        Raises:
            InputError: as `check`; nothing is made.
            HostError: the kernel refused; what was made stays, `remove` takes it away.
        """
        if resources is not None:
            self.check(resources)
        for tree, folder in zip(self.trees, self.folders(path), strict=True):
            self._make(tree, folder)
        if resources is None:
            return
        self._write(path, resources)
        if self.mode == "v2" and resources.devices is not None and resources.devices != devices.ALL_DEVICES:
            devicefilter.attach(self.folders(path)[0], resources.devices)

    def _make(self, tree: Path, folder: Path) -> None:
        """From the top down, because v2 enables controllers and v1 fills cpusets level by level."""
        if tree == self._by_controller.get("cpuset"):
            if add_cpuset(folder):
                return
            for parent, child in steps(tree, folder):
                make_folder(child)
                writes = cpuset.plan_fill_in(reader(parent), reader(child))
                apply(child, writes)
        elif self.mode == "v2":
            for parent, child in steps(tree, folder):
                enable_controllers(parent)
                make_folder(child)
        else:
            try:
                try:
                    os.mkdir(folder)
                except (FileExistsError, FileNotFoundError):
                    os.makedirs(folder, exist_ok=True)
                open_to_readers(folder)
            except OSError as exc:
                raise from_oserror(exc, f"make cgroup {folder}") from exc

    def check(self, resources: Resources) -> None:
        """Refuse what no write could do, before anything is written.

        Raises:
            InputError: `unified` on v1, or a name in it that is no resource file; a huge page size that is
                none; a sum of memory and swap below the memory limit.
        """
        if resources.unified and self.mode != "v2":
            raise InputError("unified resources need cgroup v2, which this node does not use: leave them out")
        unified.check(resources)
        hugetlb.check(resources)
        memory.check(resources)

    def update(self, path: str, resources: Resources) -> None:
        """Set the limits that are not None.

        Raises:
            InputError: as `check`.
            Busy: a memory limit below what is in use.
            HostError: names the file and the value.
        """
        self.check(resources)
        self._write(path, resources)

    def _write(self, path: str, resources: Resources) -> None:
        if self.mode == "v2":
            folder = self.folders(path)[0]
            read = reader(folder)
            for controller in CONTROLLERS:
                apply(folder, controller.plan_v2(resources, read))
            return
        for controller in CONTROLLERS:
            tree = self._by_controller.get(controller.HIERARCHIES[0])
            if tree is None:
                continue
            folder = tree / path.strip("/")
            apply(folder, controller.plan_v1(resources, reader(folder)))

    @property
    def swap_accounting(self) -> Literal["", "v1", "v2"]:
        """How swap of a cgroup can be limited: together with memory (v1), alone (v2), or not at all.

        v2's root has no limit files, but every cgroup below it.
        """
        if self.mode == "v2":
            return "v2" if next(self.root.glob("*/memory.swap.max"), None) else ""
        tree = self._by_controller.get("memory")
        return "v1" if tree and (tree / "memory.memsw.limit_in_bytes").exists() else ""

    def procs_files(self, path: str) -> list[Path]:
        """The files a process id is written to so that the process moves into the cgroup, one a hierarchy."""
        return [folder / PROCS for folder in self.folders(path)]

    def birthplace(self, path: str) -> Path | None:
        """The folder that a process can be born in (clone3(2), CLONE_INTO_CGROUP); None without cgroup2."""
        return self.folders(path)[0] if self.mode != "v1" else None

    def tasks_files(self, path: str) -> list[Path]:
        """v1's files that a process of one thread writes "0" to so that it moves itself into the cgroup.

        Unlike cgroup.procs this takes no lock that waits for an RCU grace period (10 ms on a small machine):
        a thread that moves itself cannot exit or fork meanwhile (kernel/cgroup/cgroup.c,
        cgroup_procs_write_start).
        """
        folders = self.folders(path)
        return [folder / "tasks" for folder in (folders if self.mode == "v1" else folders[1:])]

    def attach(self, path: str, pid: int) -> None:
        """Move a process, with its threads, into the cgroup in every hierarchy."""
        for folder in self.folders(path):
            apply(folder, [Write(PROCS, str(pid))])

    def kill_file(self, path: str) -> Path | None:
        """The file that kills everything in an existing cgroup when "1" is written; None without cgroup2."""
        folder = self.birthplace(path)
        return folder / "cgroup.kill" if folder else None

    def oom_file(self, path: str) -> Path | None:
        """The file whose `oom_kill` line counts OOM kills; None without a memory controller."""
        if self.mode == "v2":
            return self.folders(path)[0] / memory.OOM_FILE_V2
        tree = self._by_controller.get("memory")
        return tree / path.strip("/") / memory.OOM_FILE_V1 if tree else None

    def pids(self, path: str) -> list[int]:
        """Process ids in the cgroup and everything below it; empty where it is missing."""
        return self._everybody(path)

    def _everybody(self, path: str) -> list[int]:
        found: set[int] = set()
        for folder in self.folders(path):
            for child in subtree(folder):
                found.update(int(word) for word in reader(child)(PROCS).split())
        return sorted(found)

    def stats(self, path: str) -> CgroupStats:
        """What it has used up; zeros for a missing cgroup or controller."""
        figures: dict[str, Any] = {}
        read = reader(self.folders(path)[0]) if self.mode == "v2" else self._read_v1(path)
        for controller in CONTROLLERS:
            figures.update(controller.stats_v2(read) if self.mode == "v2" else controller.stats_v1(read))
        if self.mode != "v1":
            figures.update(pressure.stats(reader(self.folders(path)[0])))
        return CgroupStats(**figures)

    def _read_v1(self, path: str) -> Read:
        """A reader that finds a file in the hierarchy its name begins with."""

        def read(name: str) -> str:
            tree = self._by_controller.get(name.partition(".")[0])
            return reader(tree / path.strip("/"))(name) if tree else ""

        return read

    def kill(self, path: str) -> None:
        """SIGKILL every process in the cgroup and below, and thaw what v1 has frozen so that it takes effect.

        With cgroup2 mounted the kernel does it at once (cgroup.kill, 5.14); without, the list is read again
        until it holds nobody who has not been signalled, so that a fork in between does not escape.
        """
        at_once = self.kill_file(path)
        if at_once is not None:
            with suppress(NotFound):  # an older kernel, or the cgroup has just been removed
                apply(at_once.parent, [Write(at_once.name, "1")])
        done: set[int] = set()
        while fresh := set(self._everybody(path)) - done:
            for pid in fresh:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            done |= fresh
        if frozen := self._frozen_folder(path):
            for folder in subtree(frozen):
                with suppress(NotFound):
                    apply(folder, freezer.plan_thaw(reader(folder)))

    def _frozen_folder(self, path: str) -> Path | None:
        """The cgroup's folder in v1's freezer hierarchy, where there is one."""
        tree = self._by_controller.get(freezer.HIERARCHY)
        return tree / path.strip("/") if tree else None

    def survivors(self, path: str) -> str:
        """What is left in a killed cgroup, in words; empty when nothing is."""
        if not (left := self.pids(path)):
            return ""
        folder = self._frozen_folder(path)
        by = freezer.frozen_by(self._by_controller[freezer.HIERARCHY], folder) if folder else None
        frozen = f", frozen by {by}: write THAWED to its {freezer.STATE}" if by else ""
        return f"processes left: {holders.processes(left)}{frozen}"

    def remove(self, path: str, *, timeout: float = 2.0) -> None:
        """Kill what is in it and remove it with everything below, in every hierarchy. Idempotent.

        Blocks: the kernel says EBUSY until the last killed process is gone, and v1 has no event for that.

        Raises:
            Busy: still occupied after `timeout` seconds (a process in uninterruptible sleep).
        """
        deadline = time.monotonic() + timeout
        while not all(remove_tree(folder) for folder in self.folders(path)):
            if time.monotonic() >= deadline:
                raise Busy(errno.EBUSY, f"remove cgroup {path}", self.survivors(path))
            self.kill(path)
            time.sleep(_RETRY_S)
