"""Making and owning a volume's own directory."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def make_parents(directory: Path) -> None:
    """Make the folders above a volume, 0750 as kubelet's: containers come in by a bind mount, nobody walks
    here.
    """
    directory.parent.mkdir(mode=0o750, parents=True, exist_ok=True)


def make_directory(directory: Path, *, mode: int) -> bool:
    """Make a volume's directory with exactly these permission bits; whether it is new."""
    make_parents(directory)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return False
    os.chmod(directory, mode)
    return True


def own(directory: Path, *, group: int | None) -> None:
    """Give a new, empty directory to the pod's fsGroup; what is made inside later inherits the group."""
    if group is None:
        return
    os.chown(directory, -1, group)
    mode = os.stat(directory).st_mode & 0o7777 | stat.S_ISGID | stat.S_IRWXG
    os.chmod(directory, mode)
