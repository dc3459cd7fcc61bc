"""What an unprivileged process cannot do to a layer: its list, and doing it.

Device nodes need CAP_MKNOD and overlayfs's marks (trusted.overlay.opaque) CAP_SYS_ADMIN, both in the
machine's own user namespace. The process that reads the archive (`cri.images.apply`) has neither: it writes
these things down, with an empty file without permissions in the place of a device. `finish` runs outside, on
a tree that nobody changes any more, and believes the list no further than the layer's directory.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from cri.images import tarstream
from cri.images.errors import CorruptContent
from cri.images.rootdir import RootDir
from cri.images.tarstream import Entry

_MAX_BYTES = 16 << 20
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_NUMBERS = ("mode", "uid", "gid", "mtime_ns", "major", "minor")

Parts = tuple[bytes, ...]


@dataclass(kw_only=True)
class Deferred:
    """What is left to do."""

    opaque: set[Parts] = field(default_factory=set)
    """Directories that hide those of lower layers."""
    devices: dict[Parts, Entry] = field(default_factory=dict)
    _bytes: int = 0

    def add_opaque(self, parts: Parts) -> None:
        """Mark a directory; CorruptContent when there are absurdly many."""
        if parts not in self.opaque:
            self.opaque.add(parts)
            self._count(parts)

    def add_device(self, parts: Parts, entry: Entry) -> None:
        """Make a device where an empty file stands; CorruptContent when there are absurdly many."""
        self.devices[parts] = entry
        self._count(parts)

    def _count(self, parts: Parts) -> None:
        self._bytes += sum(map(len, parts)) + 64
        if self._bytes > _MAX_BYTES:
            raise CorruptContent("tar archive has absurdly many opaque directories or devices")

    def to_json(self) -> dict[str, Any]:
        """For a pipe."""
        return {
            "opaque": [_text(parts) for parts in self.opaque],
            "devices": [
                {"path": _text(parts), "kind": entry.kind.decode()}
                | {key: value for key, value in asdict(entry).items() if key in _NUMBERS}
                for parts, entry in self.devices.items()
            ],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Deferred":
        """From a pipe."""
        found = cls(opaque={_parts(text) for text in data["opaque"]})
        for item in data["devices"]:
            numbers: dict[str, Any] = {key: int(item[key]) for key in _NUMBERS}
            entry = Entry(kind=item["kind"].encode(), name=b"", **numbers)
            found.devices[_parts(item["path"])] = entry
        return found


def finish(root: RootDir, deferred: Deferred, *, opaque_name: str) -> None:
    """Do what is left; a place that a later entry has taken stays as it is.

    Args:
        root: the layer's directory.
        deferred: what the applier left.
        opaque_name: `trusted.overlay.opaque`, or `user.overlay.opaque` where the caller is not root.

    Raises:
        OSError: the disk refuses.
    """
    for parts in deferred.opaque:
        with _opened(root, parts) as fd:
            if fd >= 0:
                os.setxattr(fd, opaque_name, b"y")
    for parts, entry in deferred.devices.items():
        with _opened(root, parts[:-1]) as parent:
            if parent >= 0:
                _make_device(parent, parts[-1], entry)


@contextmanager
def _opened(root: RootDir, parts: Parts) -> Iterator[int]:
    """A descriptor of a directory, or -1 when there is none."""
    try:
        fd = root.open_dir(parts)
    except OSError as exc:
        if exc.errno not in _GONE:
            raise
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _make_device(parent: int, base: bytes, entry: Entry) -> None:
    try:
        there = os.lstat(base, dir_fd=parent)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(there.st_mode) or stat.S_IMODE(there.st_mode) or there.st_size:
        return
    form = stat.S_IFCHR if entry.kind == tarstream.CHAR else stat.S_IFBLK
    os.unlink(base, dir_fd=parent)
    os.mknod(base, form | entry.mode, os.makedev(entry.major, entry.minor), dir_fd=parent)
    os.chown(base, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
    os.utime(base, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)


def _text(parts: Parts) -> str:
    return b"/".join(parts).decode("latin-1")


def _parts(text: str) -> Parts:
    return tuple(text.encode("latin-1").split(b"/"))
