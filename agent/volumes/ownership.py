"""fsGroup: everything in a volume becomes the pod's group's, readable and writable by it.

One walk with a descriptor for each directory, so that no name is resolved twice and no link is followed: the
pods that share the volume may rename things meanwhile (CVE-2017-1002102). What is right already costs one
stat(2). Only regular files and directories get new permission bits.

Source: k8s.io/kubernetes/pkg/volume/volume_linux.go; policy OnRootMismatch: KEP-695.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_SHARED = 0o660
_SHARED_FOLDER = 0o2770


def give_to_group(root: Path, group: int, *, only_on_mismatch: bool) -> int:
    """Give a volume to a group.

    Args:
        root: the volume.
        group: the pod's fsGroup.
        only_on_mismatch: fsGroupChangePolicy OnRootMismatch: nothing to do when the root is right. The root
            is therefore changed last: a walk that was cut short is taken up again.

    Returns:
        how many files and directories were changed.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        facts = os.fstat(fd)
        right = facts.st_gid == group and facts.st_mode & _SHARED_FOLDER == _SHARED_FOLDER
        if only_on_mismatch and right:
            return 0
        return _walk(fd, group) + _change_folder(fd, facts, group)
    finally:
        os.close(fd)


def _walk(top: int, group: int) -> int:
    """Everything below an open directory; as deep as there are descriptors, without recursion."""
    below, changed = _entries(top, group)
    waiting = [(os.dup(top), below)]
    try:
        while waiting:
            folder, left = waiting[-1]
            if not left:
                waiting.pop()
                os.close(folder)
                continue
            inner = _open(left.pop(), folder)
            if inner < 0:
                continue
            waiting.append((inner, []))
            below, count = _entries(inner, group)
            waiting[-1] = (inner, below)
            changed += count + _change_folder(inner, os.fstat(inner), group)
    finally:
        for folder, _ in waiting:
            os.close(folder)
    return changed


def _entries(folder: int, group: int) -> tuple[list[str], int]:
    """Change the files of a directory; answers its subdirectories, and how many files were changed."""
    below = []
    changed = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
                continue
            with suppress(FileNotFoundError):
                changed += _change_file(folder, entry.name, entry.stat(follow_symlinks=False), group)
    return below, changed


def _change_file(folder: int, name: str, facts: os.stat_result, group: int) -> bool:
    widen = stat.S_ISREG(facts.st_mode) and facts.st_mode & _SHARED != _SHARED
    if facts.st_gid == group and not widen:
        return False
    os.chown(name, -1, group, dir_fd=folder, follow_symlinks=False)
    if widen:
        fd = os.open(name, _HANDLE, dir_fd=folder)
        try:
            now = os.fstat(fd)
            if stat.S_ISREG(now.st_mode):  # and not the link that took its name meanwhile
                os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(now.st_mode) | _SHARED)
        finally:
            os.close(fd)
    return True


def _open(name: str, folder: int) -> int:
    """A subdirectory, or -1 when it is gone or has become something else."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return os.open(name, _FOLDER, dir_fd=folder)
    return -1


def _change_folder(fd: int, facts: os.stat_result, group: int) -> int:
    if facts.st_gid == group and facts.st_mode & _SHARED_FOLDER == _SHARED_FOLDER:
        return 0
    os.fchown(fd, -1, group)
    os.fchmod(fd, stat.S_IMODE(facts.st_mode) | _SHARED_FOLDER)
    return 1
