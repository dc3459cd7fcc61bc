"""Variables from files that an init container has written into a volume (`fileKeyRef`, KEP-3721).

A file is a subset of what a shell reads: `NAME='value'`, one after the other, values in single quotes over as
many lines as they like, comments and blank lines between. What an init container wrote is hostile input: the
file is looked up beneath the volume, must be a regular one, and is read up to a limit.

Source: pkg/kubelet/util/env/env_util.go (v1.37).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from host import syscalls
from host.errors import HostError, NotFound

MAX_BYTES = 64 << 10


class EnvFileError(Exception):
    """The file is not readable as variables; the text says where."""


def value_in(text: str, key: str) -> str | None:
    """The value of the first variable of that name, None when there is none. Pure.

    Raises:
        EnvFileError: a line before it is not a variable; later ones are not looked at.
    """
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        line = lines[at].lstrip(" \t")
        at += 1
        if not line or line.startswith("#"):
            continue
        name, equals, rest = line.partition("=")
        if not equals:
            raise EnvFileError(f"line {at}: missing '='")
        if not name or name != name.rstrip(" \t"):
            raise EnvFileError(f"line {at}: a name without white space must stand before '='")
        if rest[:1] in (" ", "\t"):
            value = ""  # as for a shell: the assignment ends at the white space
        else:
            value, at = _quoted(lines, at, rest)
        if name == key:
            return value
    return None


def _quoted(lines: list[str], at: int, rest: str) -> tuple[str, int]:
    """A value in single quotes that begins in `rest`, and the number of lines read after it."""
    first = at
    if not rest.startswith("'"):
        raise EnvFileError(f"line {first}: the value must be in single quotes")
    found, rest = [], rest[1:]
    while "'" not in rest:
        found.append(rest)
        if at == len(lines):
            raise EnvFileError(f"line {first}: the single quote is not closed")
        rest = lines[at]
        at += 1
    value, _, after = rest.partition("'")
    if after.strip(" \t") and not after.lstrip(" \t").startswith("#"):
        raise EnvFileError(f"line {at}: only a comment may follow the closing quote")
    return "\n".join([*found, value]), at


def read_file(volume: Path, path: str) -> str | None:
    """A file of a volume as text, None when it is not there.

    Raises:
        EnvFileError: not a regular file beneath the volume, or too large.
    """
    try:
        root = os.open(volume, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise EnvFileError(f"volume not readable: {exc.strerror}") from exc
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
        fd = syscalls.openat2(root, path, flags=flags, resolve=resolve)
    except NotFound:
        return None
    except HostError as exc:
        raise EnvFileError(f"{path}: {exc}") from exc
    finally:
        os.close(root)
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_BYTES:
            raise EnvFileError(f"{path}: must be a regular file of at most {MAX_BYTES} bytes")
        return os.pread(fd, MAX_BYTES, 0).decode(errors="surrogateescape")
    finally:
        os.close(fd)
