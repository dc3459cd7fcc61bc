"""Whether mounts can propagate as a container asks: that is decided by the mount the source lies on.

A copy of a private mount can be made shared, but with itself alone: nothing would ever arrive, and nobody
would be told. So it is refused, as by containerd and runc (Documentation/filesystems/sharedsubtree.rst).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cri.runtime.spec import Mount
from cri.server.errors import FailedPrecondition


def peer_groups(mountinfo: str, mount_id: int) -> tuple[str, frozenset[str]]:
    """(mount point, of `shared` and `master` what it is) of one mount; see proc_pid_mountinfo(5).

    Args:
        mountinfo: text of such a file.
        mount_id: the first number of the line wanted; without one the mount is unknown: ("", nothing).
    """
    for line in mountinfo.splitlines():
        words = line.split(" - ")[0].split()
        if words and words[0] == str(mount_id):
            return words[4], frozenset(word.partition(":")[0] for word in words[6:]) & {"shared", "master"}
    return "", frozenset()


def check_propagation(mounts: Iterable[Mount], *, proc: Path = Path("/proc/self")) -> None:
    """Refuse a propagation that the source's mount does not have.

    Args:
        mounts: with sources that exist.
        proc: this process's folder of procfs.

    Raises:
        FailedPrecondition: it names the mount, and what would make it right.
    """
    wanted = [mount for mount in mounts if mount.propagation != "private"]
    if not wanted:
        return
    mountinfo = (proc / "mountinfo").read_text(errors="replace")
    for mount in wanted:
        point, groups = peer_groups(mountinfo, _mount_id(mount.source, proc))
        needed = {"shared"} if mount.propagation == "shared" else {"shared", "master"}
        if not groups & needed:
            raise FailedPrecondition(
                f"mounts: {mount.source} lies on {point or 'a mount'}, which is not a"
                f" {'shared' if mount.propagation == 'shared' else 'shared or slave'} mount:"
                f" run `mount --make-rshared {point or '/'}` on the node, or use private propagation"
            )


def _mount_id(path: Path, proc: Path) -> int:
    """Of the mount a path really lies on, links followed (the kernel says it, no prefix is compared)."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        text = (proc / "fdinfo" / str(fd)).read_text()
    finally:
        os.close(fd)
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("mnt_id:"))
