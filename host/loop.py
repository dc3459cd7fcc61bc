"""Loop devices: a regular file as a block device. loop(4), include/uapi/linux/loop.h.

A device made here carries a tag in `lo_file_name`, which the kernel only stores, so that it is told apart
from devices that people and other programs made of the same file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

from host.errors import Busy, HostError, from_oserror

_GET_FREE, _CONFIGURE, _CLEAR, _STATUS = 0x4C82, 0x4C0A, 0x4C01, 0x4C05
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_CONFIG = struct.Struct(f"=2I{_INFO.size}s64x")
_TRIES = 16
"""How often another program may be faster to take the free device."""


def attach(file: Path, *, tag: bytes) -> Path:
    """The loop device of a file: the one that has this tag already, else a new one.

    Args:
        file: a regular file; opened for reading and writing.
        tag: at most 63 bytes.

    Returns:
        the device node, e.g. /dev/loop3.

    Raises:
        HostError: no loop driver, no free device, or the file cannot be opened.
    """
    try:
        fd = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = find(os.fstat(fd), tag=tag)
            return found if found is not None else _attach_new(fd, tag)
        finally:
            os.close(fd)
    except HostError:
        raise
    except OSError as exc:
        raise from_oserror(exc, f"attach {str(file)!r} to a loop device") from exc


def _attach_new(fd: int, tag: bytes) -> Path:
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, tag[:63], b"", b"", 0, 0)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            node = Path(f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}")
            device = os.open(node, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(fd, 0, info))
                return node
            except OSError as exc:
                if exc.errno != errno.EBUSY:
                    raise
            finally:
                os.close(device)
    finally:
        os.close(control)
    raise Busy(errno.EBUSY, "attach a loop device", "every free one was taken meanwhile")


def find(facts: os.stat_result, *, tag: bytes) -> Path | None:
    """The device with this tag whose file is the one with these facts (st_dev, st_ino)."""
    for entry in sorted(Path("/sys/block").glob("loop*/loop")):
        node = Path("/dev") / entry.parent.name
        if backing(node) == (tag[:63], facts.st_dev, facts.st_ino):
            return node
    return None


def backing(node: Path) -> tuple[bytes, int, int] | None:
    """Tag, device number and inode of a loop device's file; None when it has none, or is no loop device."""
    try:
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            return None
        answer = _INFO.unpack(fcntl.ioctl(fd, _STATUS, bytes(_INFO.size)))
    except OSError:
        return None
    finally:
        os.close(fd)
    return answer[9].rstrip(b"\0"), _device_number(answer[0]), answer[1]


def _device_number(encoded: int) -> int:
    """A `dev_t` as the kernel's huge_encode_dev writes it."""
    return os.makedev(encoded >> 8 & 0xFFF, encoded & 0xFF | encoded >> 12 & 0xFFF00)


def detach(node: Path) -> None:
    """Free a loop device; one still open is freed by the kernel when it is closed.

    Raises:
        HostError.
    """
    try:
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise from_oserror(exc, f"detach {node}") from exc
    try:
        fcntl.ioctl(fd, _CLEAR)
    except OSError as exc:
        if exc.errno != errno.ENXIO:  # it has no file any more
            raise from_oserror(exc, f"detach {node}") from exc
    finally:
        os.close(fd)
