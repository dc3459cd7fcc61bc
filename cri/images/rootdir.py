"""Paths of a stranger resolved inside one directory, by file descriptors.

`RootDir.open_dir` follows symbolic links the way the container would see them: absolute ones and `..` stay
below the root (openat2(2), RESOLVE_IN_ROOT). Nothing here ever joins a path and hands it to the kernel
from the outside, which is what went wrong in CVE-2021-32760, CVE-2022-23648 and CVE-2025-47290.
"""

import errno
import os
from pathlib import Path

from cri.images.errors import CorruptContent
from host import syscalls
from host.errors import HostError

_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
MAX_DEPTH = 512


def clean(name: bytes) -> tuple[bytes, ...]:
    """Components of an archive's path: no empty ones, no `.`, and `..` undone or stopped at the root."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":
            if parts:
                parts.pop()
            continue
        if len(part) > 255:
            raise CorruptContent("tar entry has a name component longer than 255 bytes")
        parts.append(part)
    if len(parts) > MAX_DEPTH:
        raise CorruptContent(f"tar entry lies deeper than {MAX_DEPTH} directories")
    return tuple(parts)


class RootDir:
    """A directory used as the root of path resolution; close with `close`."""

    def __init__(self, path: Path | str) -> None:
        """Open `path`, which is trusted and must be a directory."""
        self.fd = os.open(path, _DIR_FLAGS)

    def close(self) -> None:
        """Close the root's descriptor."""
        os.close(self.fd)

    def open_dir(self, parts: tuple[bytes, ...], *, follow_last: bool = True) -> int:
        """Open the directory at `parts`; OSError (ENOENT, ENOTDIR, ELOOP, …) as the kernel finds it."""
        if not parts:
            return os.dup(self.fd)
        flags = _DIR_FLAGS if follow_last else _DIR_FLAGS | os.O_NOFOLLOW
        path = b"/".join(parts)
        if len(path) >= 4096:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        try:
            return syscalls.openat2(self.fd, path, flags=flags, resolve=_RESOLVE)
        except HostError as exc:
            # As the standard library would say it: ENOENT is FileNotFoundError, and so on.
            code = exc.errno or errno.EIO
            raise OSError(code, os.strerror(code)) from exc
