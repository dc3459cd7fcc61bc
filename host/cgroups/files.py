"""Reading and writing the small text files of a cgroup folder; shared by the controllers.

A controller never opens files: it plans `Write`s and is given a `Read`, so that tests need neither root nor a
cgroup mount.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from host.errors import from_oserror

Read = Callable[[str], str]
"""Content of a file of the cgroup by name, stripped; empty where the file is missing."""

MAX_FILE_BYTES = 1 << 20
_NOT_THERE = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP)
"""No such file; its cgroup was removed while it was open; PSI is switched off."""
UNLIMITED = 1 << 62
"""v1 shows "no limit" as a number near 2^63, rounded to pages; anything above this counts as none."""


@dataclass(frozen=True)
class Write:
    """One file of a cgroup folder and what to write into it."""

    name: str
    value: str
    optional: bool = False
    """Leave it out where this kernel has no such file."""


def reader(folder: Path) -> Read:
    """A `Read` for a real folder."""

    def read(name: str) -> str:
        try:
            with open(folder / name, encoding="ascii", errors="replace") as file:
                return file.read(MAX_FILE_BYTES).strip()
        except OSError as exc:
            if exc.errno in _NOT_THERE:
                return ""
            raise from_oserror(exc, f"read {folder / name}") from exc

    return read


def apply(folder: Path, writes: list[Write]) -> None:
    """Write them in order.

    Raises:
        HostError: names the file; what stood before it is written.
    """
    for write in writes:
        path = folder / write.name
        if write.optional and not path.exists():
            continue
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, write.value.encode())
            finally:
                os.close(fd)
        except OSError as exc:
            raise from_oserror(exc, f"write {write.value!r} to {path}") from exc


def keyed(text: str) -> dict[str, int]:
    """Parse "name number" lines; lines of another form are passed over."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.isdecimal():
            found[name] = int(value)
    return found


def number(text: str) -> int:
    """A single number; 0 for an empty file, "max", and v1's largest values."""
    value = int(text) if text.isdecimal() else 0
    return 0 if value >= UNLIMITED else value
