"""Network namespaces by path: make, bind, delete, and do work inside one without forking.

Work inside another namespace happens on a fresh thread that calls setns(2) and ends afterwards, so no
thread of the caller ever changes its namespace, and nothing forks (a threaded daemon must not).

Not for: other kinds of namespaces (the runtime makes those), and what happens to links inside.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from host import syscalls, threads
from host.errors import Exists, Unsupported, from_oserror

T = TypeVar("T")
NetnsRef = int | str | os.PathLike[str]
"""A network namespace: an open fd, or a path such as `/run/netns/cni-1` or `/proc/1/ns/net`."""

_OWN = "/proc/thread-self/ns/net"
_NS_GET_USERNS = 0xB701  # _IO(0xb7, 0x1)
_NS_GET_NSTYPE = 0xB703  # _IO(0xb7, 0x3) of linux/nsfs.h


def create(path: str | os.PathLike[str]) -> None:
    """Make a new network namespace and keep it alive by a bind mount at `path`.

    The parent directory is created (0755) if missing. The loopback device of the new namespace is down
    (CNI ADD raises it).

    Raises:
        Exists: `path` is there already.
        Denied: no CAP_SYS_ADMIN.
    """
    target = Path(path)
    try:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    except FileExistsError as exc:
        raise Exists(errno.EEXIST, f"create network namespace {target}") from exc
    except OSError as exc:
        raise from_oserror(exc, f"create network namespace {target}") from exc

    def make() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        syscalls.mount(_OWN, str(target), "", syscalls.MS_BIND, "")

    try:
        _on_fresh_thread(make)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def delete(path: str | os.PathLike[str]) -> None:
    """Unmount and unlink `path`; a missing path is success. Never waits for what is still inside."""
    target = os.fspath(path)
    while os.path.lexists(target):
        try:
            syscalls.umount(target, syscalls.MNT_DETACH)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOENT):  # EINVAL: not, or no longer, a mount point
                raise from_oserror(exc, f"unmount network namespace {target}") from exc
            with suppress(FileNotFoundError):
                os.unlink(target)


def open_netns(ref: NetnsRef) -> int:
    """A new close-on-exec descriptor of the namespace; the caller closes it.

    Raises:
        NotFound: no such path.
        Unsupported: something else than a network namespace.
    """
    try:
        fd = os.dup(ref) if isinstance(ref, int) else os.open(ref, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise from_oserror(exc, f"open network namespace {ref}") from exc
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != syscalls.CLONE_NEWNET:
        os.close(fd)
        raise Unsupported(errno.EOPNOTSUPP, f"open network namespace {ref}", "not a network namespace")
    return fd


def owner(ref: NetnsRef) -> int:
    """A descriptor of the user namespace that a network namespace belongs to; the caller closes it.

    Raises:
        NotFound: no such path.
        Denied: it belongs to a user namespace that is not below ours.
    """
    fd = open_netns(ref)
    try:
        return fcntl.ioctl(fd, _NS_GET_USERNS)
    except OSError as exc:
        raise from_oserror(exc, f"open the owner of network namespace {ref}") from exc
    finally:
        os.close(fd)


def identity(ref: NetnsRef | None = None) -> tuple[int, int]:
    """(device, inode) of the namespace, or of the calling thread's own when `ref` is None."""
    try:
        found = os.stat(_OWN if ref is None else ref)
    except OSError as exc:
        raise from_oserror(exc, f"stat network namespace {ref or _OWN}") from exc
    return found.st_dev, found.st_ino


def run_in(ref: NetnsRef, work: Callable[[], T]) -> T:
    """Run `work` on a fresh thread inside the namespace and return (or raise) what it gives.

    Blocks; costs about 0.1 ms. Processes that `work` starts are born in that namespace.
    """
    fd = open_netns(ref)

    def enter() -> T:
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
        return work()

    try:
        return _on_fresh_thread(enter)
    finally:
        os.close(fd)


def open_socket(ref: NetnsRef, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket that belongs to the namespace, usable afterwards from any thread."""
    return run_in(ref, lambda: socket.socket(family, kind, protocol))


def listed(directory: str | os.PathLike[str], prefix: str = "cni-") -> list[Path]:
    """Paths in `directory` whose names start with `prefix`, sorted, mounted or not; [] without directory."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise from_oserror(exc, f"list network namespaces in {directory}") from exc
    return sorted(Path(directory) / name for name in names if name.startswith(prefix))


def _on_fresh_thread(work: Callable[[], T]) -> T:
    """The result of `work` on a thread of its own, which ends with whatever namespace it then is in."""
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            result.append(work())
        except BaseException as exc:  # handed to the caller, whatever it is
            failure.append(exc)

    thread = threading.Thread(target=body, name="netns", daemon=True)
    threads.start(thread)
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
