"""Files that are either the old ones or the new ones, never half of each.

`write_atomic` is temp file, fsync, rename, fsync of the folder. A record is JSON in an envelope with its
kind, version and a SHA-256 of all three; one that cannot be trusted raises `CorruptRecord`, and
`quarantine` moves it aside for a person to look at while the caller rebuilds the facts from the kernel.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from host import holders
from host.errors import Busy, HostError, InputError, from_oserror

MAX_RECORD_BYTES = 16 << 20


class CorruptRecord(HostError):
    """A record's bytes are not what was written: cut, changed or of another kind."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(errno.EBADMSG, f"record {path}", detail)


class NewerRecord(HostError):
    """A whole record of a later release: nothing is wrong with it, and it is not ours to set aside."""

    def __init__(self, path: Path, found: int, known: int) -> None:
        detail = f"version {found} is newer than {known}, the last one known here: start the later release"
        super().__init__(errno.EPROTO, f"record {path}", detail)


def read_input(path: Path, *, limit: int, noun: str = "") -> bytes:
    """A file that somebody wrote for us, whole.

    Args:
        limit: bytes it may have.
        noun: what it is, for messages: "kubeconfig".

    Raises:
        InputError: it cannot be read, or is larger; the message names it.
    """
    named = f"{noun} {path}".lstrip()
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as exc:
        raise InputError(f"{named} cannot be read: {(exc.strerror or str(exc)).lower()}") from exc
    if len(raw) > limit:
        raise InputError(f"{named} is larger than {limit} bytes")
    return raw


def write_atomic(path: Path | str, data: bytes, *, mode: int = 0o600, sync: bool = True) -> None:
    """Replace a file's whole content at once.

    Args:
        path: the file; its folder must exist.
        data: the new content.
        mode: permission bits of the new file.
        sync: whether the content must survive a power cut; False where the folder is on tmpfs anyway.

    Raises:
        HostError: the old content is then untouched.
    """
    target = Path(path)
    temp = target.with_name(f".{target.name}.{os.urandom(6).hex()}")
    made = False
    try:
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        made = True
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fchmod(fd, mode)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temp, target)
        if sync:
            _sync_folder(target.parent)
    except OSError as exc:
        if made:
            with suppress(FileNotFoundError):
                os.unlink(temp)
        raise from_oserror(exc, f"write {target}") from exc


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_record(
    path: Path | str, data: Any, *, kind: str, version: int, mode: int = 0o600, sync: bool = True
) -> None:
    """Write JSON-able data as a record of this kind and version (see `write_atomic`)."""
    envelope = {"kind": kind, "version": version, "sha256": _digest(kind, version, data), "data": data}
    write_atomic(path, json.dumps(envelope, separators=(",", ":")).encode(), mode=mode, sync=sync)


def _digest(kind: Any, version: Any, data: Any) -> str:
    """Over kind and version too: a changed bit must never pass for the record of a later release."""
    body = json.dumps([kind, version, data], separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()


def read_record(path: Path | str, *, kind: str, version: int) -> Any:
    """Read a record's data.

    Raises:
        NotFound: no such file.
        CorruptRecord: not JSON, wrong checksum or another kind.
        NewerRecord: whole, and of a version newer than `version`.
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            raw = file.read(MAX_RECORD_BYTES + 1)
    except OSError as exc:
        raise from_oserror(exc, f"read {source}") from exc
    if len(raw) > MAX_RECORD_BYTES:
        raise CorruptRecord(source, f"larger than {MAX_RECORD_BYTES} bytes")
    try:
        envelope = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise CorruptRecord(source, "not JSON") from exc
    if not isinstance(envelope, dict) or not {"kind", "version", "sha256", "data"} <= envelope.keys():
        raise CorruptRecord(source, "no record envelope")
    if _digest(envelope["kind"], envelope["version"], envelope["data"]) != envelope["sha256"]:
        raise CorruptRecord(source, "checksum does not match")
    if envelope["kind"] != kind or not isinstance(envelope["version"], int):
        raise CorruptRecord(source, f"kind is {envelope['kind']!r}, not {kind!r}")
    if envelope["version"] > version:
        raise NewerRecord(source, envelope["version"], version)
    return envelope["data"]


def quarantine(path: Path | str) -> Path:
    """Move a file aside as `<name>.corrupt` (replacing an older one) and say where it is now.

    Raises:
        NotFound: no such file.
    """
    source = Path(path)
    target = source.with_name(source.name + ".corrupt")
    try:
        os.replace(source, target)
    except OSError as exc:
        raise from_oserror(exc, f"quarantine {source}") from exc
    return target


@contextmanager
def locked(path: Path | str, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive flock(2) on a file, which is created where missing and stays behind.

    Raises:
        Busy: somebody else holds it and `wait` is False.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise from_oserror(exc, f"lock {path}") from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as exc:
            holder = holders.lockers(Path(path)) or "another process"
            raise Busy(errno.EBUSY, f"lock {path}", f"held by {holder}") from exc
        yield
    finally:
        os.close(fd)
