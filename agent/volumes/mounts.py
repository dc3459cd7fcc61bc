"""Mounts for volumes: making them, and what the kernel says is mounted.

The mount table is the only memory: after an agent restart `table` finds everything again, and asks no file
system for it: a stat(2) on a mount whose server is dead never answers.
Kernel reference: proc_pid_mountinfo(5), tmpfs(5), mount(2).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from host import syscalls
from host.errors import HostError

_ESCAPED = re.compile(r"\\([0-7]{3})")
_REMOTE = frozenset(("nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "glusterfs", "lustre", "virtiofs"))


@dataclass(frozen=True)
class Mounted:
    """One line of the mount table.

    Attributes:
        point: where.
        kind: type of the file system, e.g. "tmpfs", "nfs4", "fuse.sshfs".
        source: what is mounted, as the file system calls it, e.g. "10.0.0.5:/export".
    """

    point: Path
    kind: str = ""
    source: str = ""

    @property
    def remote(self) -> bool:
        """Whether another program or machine answers for it, which may never do so."""
        return self.kind in _REMOTE or self.kind.partition(".")[0] in ("fuse", "fuseblk")


class Mounter(Protocol):
    """What volumes ask of the mount table."""

    def tmpfs(self, path: Path, *, mode: int, size: int | None = None) -> None:
        """Mount a tmpfs on an existing directory (mode: permission bits of its root, size: bytes)."""

    def hugetlbfs(self, path: Path, *, page_size: str) -> None:
        """Mount memory in huge pages on an existing directory (page_size: as the kernel reads it, "2M")."""

    def bind(self, fd: int, target: Path) -> None:
        """Mount the file or directory that is open as `fd` on an existing file or directory."""

    def unmount(self, path: Path, *, lazy: bool = False) -> None:
        """Unmount the topmost mount at a path. Raises HostError (Busy, NotFound when nothing is mounted)."""

    def is_mounted(self, path: Path) -> bool:
        """Whether this very path is a mount point. For file systems of this machine: it asks them."""

    def table(self, path: Path) -> Sequence[Mounted]:
        """Every mount at or below a path, the last mounted first."""

    def mount_at(self, path: Path) -> Mounted | None:
        """The mount that a path is on, links in it not followed."""


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

    def hugetlbfs(self, path: Path, *, page_size: str) -> None:
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount("nodev", str(path), "hugetlbfs", flags, f"pagesize={page_size},mode=0777")

    def bind(self, fd: int, target: Path) -> None:
        syscalls.mount(f"/proc/self/fd/{fd}", str(target), "", syscalls.MS_BIND)

    def unmount(self, path: Path, *, lazy: bool = False) -> None:
        syscalls.umount(str(path), syscalls.MNT_DETACH if lazy else 0)

    def is_mounted(self, path: Path) -> bool:
        return os.path.ismount(path)  # two lstat(2), against a table of thousands of lines

    def table(self, path: Path) -> list[Mounted]:
        return mounts_below(self._mountinfo.read_text(errors="surrogateescape"), path)

    def mount_at(self, path: Path) -> Mounted | None:
        return mount_at(self._mountinfo.read_text(errors="surrogateescape"), path)


def mounts_below(mountinfo: str, path: Path) -> list[Mounted]:
    """The mounts at or below `path` in the text of a mountinfo file, the last mounted first."""
    found = []
    prefix = f"{path}/" if path != Path("/") else "/"
    for line in mountinfo.split("\n"):
        front, _, back = line.partition(" - ")
        fields, behind = front.split(" "), back.split(" ")
        if len(fields) < 6 or len(behind) < 2:
            continue
        point = _plain(fields[4])
        if f"{point}/".startswith(prefix):
            found.append(Mounted(Path(point), behind[0], _plain(behind[1])))
    found.reverse()
    return found


def mount_at(mountinfo: str, path: Path) -> Mounted | None:
    """The mount that a path without links is on: the last of those with the longest mount point above it."""
    above = {path, *path.parents}
    found: Mounted | None = None
    for mounted in mounts_below(mountinfo, Path("/")):
        if mounted.point in above and (found is None or len(str(mounted.point)) > len(str(found.point))):
            found = mounted
    return found


def _plain(field: str) -> str:
    """A field of mountinfo: space, tab, newline and backslash are written in octal there."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), field)
