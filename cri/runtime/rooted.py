"""Finding and making files inside a container's root without ever leaving it.

Every path is resolved by the kernel against a descriptor of the root (openat2 with RESOLVE_IN_ROOT), never as
a string on the host: an image's links lead to places inside the image. See CVE-2021-30465, CVE-2024-45310,
CVE-2025-31133 and their kin.
"""

from __future__ import annotations

import errno
import os
import stat

from host import syscalls
from host.errors import HostError, NotFound, from_errno, from_oserror

IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
MAX_READ = 10 << 20


def parts(path: bytes) -> list[bytes]:
    """The segments of an absolute path in the container.

    Raises:
        HostError: EINVAL for a path with ".." in it or one that is the root itself.
    """
    found = [part for part in path.split(b"/") if part not in (b"", b".")]
    if not found or b".." in found:
        raise from_errno(errno.EINVAL, f"path {path.decode(errors='replace')!r} in the container")
    return found


def find(root: int, path: bytes, flags: int = os.O_PATH, resolve: int = 0) -> int:
    """Open something inside the root.

    Raises:
        NotFound: not there.
    """
    return syscalls.openat2(root, path, flags=flags, resolve=IN_ROOT | resolve)


def folder(root: int, path: bytes, *, mode: int = 0o755) -> int:
    """Open a folder, making it and its parents one by one where missing."""
    steps = parts(path)
    parent = os.dup(root)
    for count, name in enumerate(steps, 1):
        here = b"/".join(steps[:count])
        try:
            child = find(root, here, os.O_PATH | os.O_DIRECTORY)
        except NotFound:
            _make(parent, name, mode)
            child = find(root, here, os.O_PATH | os.O_DIRECTORY)
        os.close(parent)
        parent = child
    return parent


def _make(parent: int, name: bytes, mode: int) -> None:
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        return
    except OSError as exc:
        raise from_oserror(exc, f"make folder {name.decode(errors='replace')}") from exc


def file(root: int, path: bytes) -> int:
    """Open (O_PATH) a file, making an empty one and its parents where missing."""
    try:
        return find(root, path)
    except NotFound:
        steps = parts(path)
    parent = folder(root, b"/".join(steps[:-1])) if len(steps) > 1 else os.dup(root)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(steps[-1], flags, 0o644, dir_fd=parent))
    except OSError as exc:
        raise from_oserror(exc, f"make file {path.decode(errors='replace')}") from exc
    finally:
        os.close(parent)
    return find(root, path)


def read(root: int, path: bytes, *, limit: int = MAX_READ) -> bytes:
    """Content of a regular file inside the root; empty where there is none.

    Raises:
        HostError: it is no regular file, or larger than `limit` (CVE-2026-47262, CVE-2025-4437).
    """
    try:
        fd = find(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except HostError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return b""
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise from_errno(errno.EINVAL, f"read {path.decode(errors='replace')} of the image")
        data = bytearray()
        while piece := os.read(fd, 1 << 16):
            data += piece
            if len(data) > limit:
                raise from_errno(errno.EFBIG, f"read {path.decode(errors='replace')} of the image")
        return bytes(data)
    finally:
        os.close(fd)
