"""Small facts on disk, written by supervisors before they are told to anybody: all or nothing, checked.

A magic word, a CRC-32 and one value of `cri.runtime.wire`, without the imports of `host.files`. Records
survive the death of any process, which is all they are for; they are not synced to disk, because a power cut
ends the containers they tell of, and the state folder is on tmpfs in a normal set-up.
"""

from __future__ import annotations

import errno
import os
from binascii import crc32

from cri.runtime import wire
from host.errors import from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAGIC = b"nodelet1"
MAX_RECORD = 1 << 20


class BadRecord(ValueError):
    """The file's bytes are not what was written."""


def write(folder: str | bytes, name: str, value: Any) -> None:
    """Replace the record `name` in `folder` at once.

    Raises:
        OSError: the old record is untouched.
    """
    body = wire.encode(value)
    data = MAGIC + crc32(body).to_bytes(4, "big") + body
    dirfd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        temp = f".{name}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temp, flags, 0o600, dir_fd=dirfd)
        try:
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)
        os.rename(temp, name, src_dir_fd=dirfd, dst_dir_fd=dirfd)
    finally:
        os.close(dirfd)


def read(folder: str | bytes, name: str) -> Any:
    """The record's value.

    Raises:
        NotFound: no such record.
        HostError: it cannot be opened.
        BadRecord: cut or changed.
    """
    path = os.path.join(os.fsencode(folder), name.encode())
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        raise from_oserror(exc, f"record {os.fsdecode(path)}") from exc
    try:
        data = os.read(fd, MAX_RECORD)
    finally:
        os.close(fd)
    head = len(MAGIC) + 4
    body = data[head:]
    if data[: len(MAGIC)] != MAGIC or data[len(MAGIC) : head] != crc32(body).to_bytes(4, "big"):
        raise BadRecord(f"record {os.fsdecode(path)} is damaged: remove it")
    try:
        return wire.decode(body)
    except wire.WireError as exc:
        raise BadRecord(f"record {os.fsdecode(path)} is damaged: remove it") from exc


def start_time(pid: int) -> int:
    """When a process began, in clock ticks since boot; with the pid it names one process for ever.

    Returns 0 when there is no such process, or only its zombie.

    Raises:
        OSError: it cannot be seen (no descriptor is free), which is no sign of its end.
    """
    fields = _stat(pid)
    return 0 if not fields or fields[0] in (b"Z", b"X") else int(fields[19])


def parent(pid: int) -> int:
    """A process's parent, also of a zombie; 0 when there is no such process."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _stat(pid: int) -> list[bytes]:
    """What follows the name in /proc/<pid>/stat (proc(5)); empty when there is no such process."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        return os.read(fd, 4096).rpartition(b")")[2].split()
    except ProcessLookupError:
        return []
    finally:
        os.close(fd)
