"""Network namespaces by path: make, bind, delete, and do work inside one without forking.

Work inside another namespace happens on a fresh thread that calls setns(2) and ends afterwards, so no
thread of the caller ever changes its namespace, and nothing forks (a threaded daemon must not).

Not for: other kinds of namespaces (the runtime makes those), and what happens to links inside.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
NetnsRef = int | str | os.PathLike[str]
"""A network namespace: an open fd, or a path such as `/run/netns/cni-1` or `/proc/1/ns/net`."""


def create(path: str | os.PathLike[str]) -> None:
    """Makes a new network namespace and keeps it alive by a bind mount at `path`.

    The parent directory is created (0755) if missing. Raises Exists when `path` is there already.
    The loopback device of the new namespace is down (CNI ADD raises it).
    """
    raise NotImplementedError


def delete(path: str | os.PathLike[str]) -> None:
    """Unmounts and unlinks `path`; a missing path is success. Never blocks on what is still inside."""
    raise NotImplementedError


def open_netns(ref: NetnsRef) -> int:
    """A new O_CLOEXEC fd of the namespace; the caller closes it.

    Raises NotFound (no such path) or Unsupported (path is not a network namespace).
    """
    raise NotImplementedError


def identity(ref: NetnsRef | None = None) -> tuple[int, int]:
    """(device, inode) of the namespace; of the calling thread's own when `ref` is None."""
    raise NotImplementedError


def run_in(ref: NetnsRef, work: Callable[[], T]) -> T:
    """Runs `work` on a fresh thread inside the namespace and returns (or raises) what it gives.

    Blocks; ~0.1 ms of overhead. `work` must not start processes that outlive it.
    """
    raise NotImplementedError


def open_socket(ref: NetnsRef, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that belongs to the namespace, usable afterwards from any thread."""
    raise NotImplementedError


def listed(directory: str | os.PathLike[str], prefix: str = "cni-") -> list[Path]:
    """Names bound in `directory` that start with `prefix`, whether or not the mount is still there."""
    raise NotImplementedError
