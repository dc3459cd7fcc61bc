"""Mounts for volumes: tmpfs, binds of an open file, unmounting, and what the kernel says is mounted.

The mount table is the only memory: after an agent restart `below` finds everything again.
Kernel reference: proc_pid_mountinfo(5), tmpfs(5), mount(2).
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from host import syscalls
from host.errors import HostError, NotFound

_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mounter(Protocol):
    """What volumes ask of the mount table."""

    def tmpfs(self, path: Path, *, mode: int, size: int | None = None) -> None:
        """Mount a tmpfs on an existing directory (mode: permission bits of its root, size: bytes)."""

    def bind(self, fd: int, target: Path) -> None:
        """Mount the file or directory that is open as `fd` on an existing file or directory."""

    def unmount(self, path: Path, *, lazy: bool = False) -> None:
        """Unmount the topmost mount at a path. Raises HostError (Busy, NotFound when nothing is mounted)."""

    def is_mounted(self, path: Path) -> bool:
        """Whether this very path is a mount point."""

    def below(self, path: Path) -> list[Path]:
        """Every mount point at or below a path, the last mounted first."""


class HostMounter:
    """The machine's mount table, as this process sees it.

    Args:
        mountinfo: the file to read; another one only in tests.
    """

    def __init__(self, *, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
        self._mountinfo = mountinfo

    def tmpfs(self, path: Path, *, mode: int, size: int | None = None) -> None:
        options = f"mode={mode:o}" + ("" if size is None else f",size={size}")
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        try:
            # Secrets must not reach a disk: noswap exists since Linux 6.4 and is refused without CONFIG_SWAP.
            syscalls.mount("tmpfs", str(path), "tmpfs", flags, options + ",noswap")
        except HostError as exc:
            if exc.errno != errno.EINVAL:
                raise
            syscalls.mount("tmpfs", str(path), "tmpfs", flags, options)

    def bind(self, fd: int, target: Path) -> None:
        syscalls.mount(f"/proc/self/fd/{fd}", str(target), "", syscalls.MS_BIND)

    def unmount(self, path: Path, *, lazy: bool = False) -> None:
        syscalls.umount(str(path), syscalls.MNT_DETACH if lazy else 0)

    def is_mounted(self, path: Path) -> bool:
        return os.path.ismount(path)

    def below(self, path: Path) -> list[Path]:
        return mount_points(self._mountinfo.read_text(), path)


def mount_points(mountinfo: str, path: Path) -> list[Path]:
    """The mount points at or below `path` in the text of a mountinfo file, the last mounted first."""
    found = []
    for line in mountinfo.splitlines():
        fields = line.split(" ", 5)
        if len(fields) < 6:
            continue
        point = Path(_ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4]))
        if point == path or path in point.parents:
            found.append(point)
    found.reverse()
    return found


def unmount_below(mounter: Mounter, path: Path) -> None:
    """Unmount everything at or below a path.

    Raises:
        HostError: a mount is in use; the others are gone.
    """
    refused: HostError | None = None
    for point in mounter.below(path):
        try:
            mounter.unmount(point)
        except NotFound:
            continue
        except HostError as exc:
            if exc.errno != errno.EINVAL:  # not a mount point any more
                refused = exc
    if refused is not None:
        raise refused


def users_of(path: Path, *, proc: Path = Path("/proc")) -> list[int]:
    """PIDs with their root, working directory or an open file below a path: who keeps a mount busy."""
    prefix = f"{path}/"
    pids = []
    for entry in proc.iterdir():
        if entry.name.isdecimal() and any(
            f"{target}/".startswith(prefix) for target in _links_of_process(entry)
        ):
            pids.append(int(entry.name))
    return sorted(pids)


def _links_of_process(entry: Path) -> list[str]:
    links = [entry / "cwd", entry / "root"]
    targets = []
    with suppress(OSError):
        links.extend((entry / "fd").iterdir())
    for link in links:
        with suppress(OSError):
            targets.append(os.readlink(link))
    return targets
