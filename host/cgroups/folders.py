"""Folders of cgroup hierarchies: where a cgroup's are, how they are made and removed."""

from __future__ import annotations

import errno
import functools
import os
from itertools import pairwise
from pathlib import Path

from host.cgroups import cpuset
from host.cgroups.files import Write, apply, reader
from host.errors import InputError, from_oserror

V2_CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids", "hugetlb")


@functools.lru_cache(maxsize=256)
def in_trees(trees: tuple[Path, ...], path: str) -> tuple[Path, ...]:
    """A cgroup's folder in each hierarchy.

    Raises:
        InputError: the path is the root itself or has a segment that leads elsewhere.
    """
    segments = [segment for segment in path.split("/") if segment]
    if not segments or any(segment in (".", "..") or "\0" in segment for segment in segments):
        raise InputError(f"cgroup path {path!r} is not usable: name a cgroup below the root")
    return tuple(tree.joinpath(*segments) for tree in trees)


def add_cpuset(folder: Path) -> bool:
    """Make and fill a cpuset whose parent is there and filled, the usual case; False where it is not."""
    parent = reader(folder.parent)
    if not all(parent(name) for name in cpuset.FILES):
        return False
    make_folder(folder)
    apply(folder, cpuset.plan_fill_in(parent, reader(folder)))
    return True


def steps(tree: Path, folder: Path) -> list[tuple[Path, Path]]:
    """(parent, child) pairs from the mount down to the folder."""
    chain = [folder, *folder.parents]
    chain = chain[: chain.index(tree) + 1][::-1]
    return list(pairwise(chain))


def make_folder(folder: Path) -> None:
    """A cgroup whose parent is there; fine when it is there itself. Raises HostError."""
    try:
        os.mkdir(folder)
        open_to_readers(folder)
    except FileExistsError:
        return
    except OSError as exc:
        raise from_oserror(exc, f"make cgroup {folder}") from exc


def open_to_readers(folder: Path) -> None:
    """Let everybody read a cgroup, whatever this process's umask: a container shows its own to all its users.

    Runtimes of languages size their heaps and thread pools by it, and most of them do not run as root.
    """
    folder.chmod(0o755)


def enable_controllers(folder: Path) -> None:
    """Hand down every controller we use that this level has and does not yet hand down."""
    read = reader(folder)
    missing = set(read("cgroup.controllers").split()) - set(read("cgroup.subtree_control").split())
    wanted = [f"+{name}" for name in V2_CONTROLLERS if name in missing]
    if wanted:
        apply(folder, [Write("cgroup.subtree_control", " ".join(wanted))])


def subtree(folder: Path) -> list[Path]:
    """The folder and all below it, deepest last; empty where it is missing."""
    return [Path(where) for where, _, _ in os.walk(folder)]


def remove_tree(folder: Path) -> bool:
    """Remove it and what is below, deepest first; False while a process is in one of them."""
    try:
        os.rmdir(folder)
        return True
    except FileNotFoundError:
        return True
    except OSError as exc:
        if exc.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise from_oserror(exc, f"remove cgroup {folder}") from exc
    for child in reversed(subtree(folder)):
        try:
            os.rmdir(child)
        except FileNotFoundError:
            continue
        except OSError as exc:
            if exc.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise from_oserror(exc, f"remove cgroup {child}") from exc
    return True
