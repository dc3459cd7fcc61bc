"""The lab's own cgroups: one root per machine, made in every hierarchy, killed and removed as a whole.

Works on cgroup v2, v1 and the hybrid of both. Not for what nodes do below their root: that is theirs.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from deploy.labkit.errors import LabError
from deploy.labkit.processes import start_time

PROGRAMS = "daemons"
"""The leaf below a machine's root where its own programs are; pods are beside it."""


def hierarchies(mountinfo: Path = Path("/proc/self/mountinfo")) -> list[Path]:
    """Mount points of all cgroup hierarchies, cgroup2 (if mounted) first."""
    second, first = [], []
    for line in mountinfo.read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind = right.split()[0]
        if kind == "cgroup2":
            second.append(Path(left.split()[4]))
        elif kind == "cgroup":
            first.append(Path(left.split()[4]))
    return list(dict.fromkeys(second + first))


def make(relative: str) -> None:
    """Make a cgroup in every hierarchy, ready for processes: cpuset filled in, v2 controllers passed on."""
    for mount in hierarchies():
        place = mount
        for part in relative.strip("/").split("/"):
            _pass_down(place)
            parent, place = place, place / part
            place.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                if (place / name).exists() and not (place / "cgroup.controllers").exists():
                    (place / name).write_text((parent / name).read_text())


def _pass_down(place: Path) -> None:
    """Turn on for the children every controller that a v2 cgroup has."""
    available = place / "cgroup.controllers"
    if not available.exists():
        return
    wanted = set(available.read_text().split()) - set((place / "cgroup.subtree_control").read_text().split())
    for controller in sorted(wanted):
        # cpu is refused while real-time processes are about; a node copes with its absence.
        with suppress(OSError):
            (place / "cgroup.subtree_control").write_text(f"+{controller}")


def first_process(relative: str, container_id: str) -> int | None:
    """The PID of a container's oldest process, found below a cgroup; None when it has none.

    Args:
        relative: of a node.
        container_id: with or without the runtime's name before it.
    """
    plain = container_id.rpartition("/")[2]
    for mount in hierarchies():
        for folder, _, _ in os.walk(mount / relative.strip("/")):  # which goes on when a folder vanishes
            if plain not in os.path.basename(folder):
                continue
            try:
                pids = list(map(int, Path(folder, "cgroup.procs").read_text().split()))
            except OSError as exc:  # removed while we looked
                if exc.errno not in (errno.ENOENT, errno.ENODEV):
                    raise
                continue
            # The oldest one, not the lowest: process ids start again at the bottom.
            ages = [(started, pid) for pid in pids if (started := start_time(pid)) is not None]
            if ages:
                return min(ages)[1]
    return None


def joined(relative: str) -> list[Path]:
    """The folders a machine's own programs join: cgroup2 where it is mounted, else the pids hierarchy."""
    places = [mount / relative.strip("/") / PROGRAMS for mount in hierarchies()]
    second = [place for place in places if (place / "cgroup.controllers").exists()]
    return second or [place for place in places if (place / "pids.max").exists()] or places[:1]


def processes(relative: str) -> set[int]:
    """Pids of all processes in a cgroup or below it, in any hierarchy."""
    found: set[int] = set()
    for mount in hierarchies():
        for folder, _, _ in os.walk(mount / relative.strip("/")):
            with suppress(OSError):
                found.update(map(int, (Path(folder) / "cgroup.procs").read_text().split()))
    return found - {0}


def kill(relative: str, *, seconds: float = 10.0) -> None:
    """Kill everything in a cgroup and below it, forks in flight included; returns when all are gone.

    Raises:
        LabError: a process does not end in time.
    """
    for mount in hierarchies():
        switch = mount / relative.strip("/") / "cgroup.kill"
        if switch.exists():
            switch.write_text("1")
    deadline = time.monotonic() + seconds
    while left := processes(relative):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise LabError(f"processes {sorted(left)} in cgroup {relative} do not end")
        time.sleep(0.02)


def remove(relative: str) -> None:
    """Remove a cgroup and all below it from every hierarchy; nothing may be running there."""
    for mount in hierarchies():
        root = mount / relative.strip("/")
        for folder, _, _ in os.walk(root, topdown=False):
            _remove_one(Path(folder))


def _remove_one(folder: Path, attempts: int = 50) -> None:
    """rmdir answers EBUSY for a moment after the last process of a cgroup has been reaped."""
    for attempt in range(attempts):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if attempt == attempts - 1:
                raise
            time.sleep(0.02)
        else:
            return
