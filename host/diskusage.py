"""What a folder tree takes on disk, without following anything out of it.

The tree may belong to a container that changes it meanwhile, so every step is relative to an open folder and
refuses links (openat(2), O_NOFOLLOW); other file systems mounted inside are not counted, as with `du -x`.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

_BLOCK = 512
"""Unit of st_blocks (stat(2))."""
_DEEPEST = 128
"""Levels looked into: each one holds a descriptor open. What is deeper only counts for the whole disk."""
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def disk_usage(folder: Path | str) -> tuple[int, int]:
    """Bytes and inodes of everything below a folder; what is missing or vanishes meanwhile is not counted.

    A file with several names inside counts once.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        top = os.open(folder, _OPEN)
    except FileNotFoundError:
        return 0, 0
    linked: set[int] = set()
    try:
        return _below(top, os.fstat(top).st_dev, linked, 0)
    finally:
        os.close(top)


def _below(folder: int, device: int, linked: set[int], depth: int) -> tuple[int, int]:
    used = inodes = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if found.st_dev != device or found.st_ino in linked:
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            if found.st_nlink > 1 and not is_folder:
                linked.add(found.st_ino)
            used += found.st_blocks * _BLOCK
            inodes += 1
            if is_folder and depth < _DEEPEST:
                more = _inside(folder, entry.name, device, linked, depth)
                used, inodes = used + more[0], inodes + more[1]
    return used, inodes


def _inside(parent: int, name: str, device: int, linked: set[int], depth: int) -> tuple[int, int]:
    try:
        child = os.open(name, _OPEN, dir_fd=parent)
    except (FileNotFoundError, NotADirectoryError):
        return 0, 0  # removed, or replaced by a file or link, since it was listed
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            return 0, 0
        raise
    try:
        return _below(child, device, linked, depth + 1)
    finally:
        os.close(child)
