"""Directories whose files change all at once, for configMap, secret, projected and downwardAPI volumes.

    <volume>/..2026_07_01_10_00_00.4f1c/key     the files of one generation
    <volume>/..data -> ..2026_07_01_10_00_00.4f1c
    <volume>/key -> ..data/key

A new generation is written beside the old one and takes over by renaming the `..data` link, so a reader sees
the old files or the new ones, never some of each. The layout is kubelet's (pkg/volume/util/atomic_writer.go);
programs such as config reloaders rely on it.

Every step goes through a descriptor of the volume's directory and follows no link, so that a directory that
was tampered with cannot send a write elsewhere (CVE-2017-1002102). Nothing is fsynced: the content comes
from the API and is written again after a reboot.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from agent.volumes.base import Unready

_DATA = "..data"
_NEW_DATA = "..data_tmp"
_KEY = re.compile(r"[-._a-zA-Z0-9]+")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_PATH = 4096


@dataclass(frozen=True)
class File:
    """One file's content, permission bits, and owner (None: root)."""

    data: bytes
    mode: int
    uid: int | None = None


def check_key(key: str) -> str:
    """A ConfigMap's or Secret's key, which becomes a file name.

    Raises:
        Unready: it could leave the directory or is no valid key.
    """
    if _KEY.fullmatch(key) is None or key.startswith("..") or key == "." or len(key) > 253:
        raise Unready(f"invalid key {key[:64]!r}: use letters, digits, '-', '_' and '.'")
    return key


def check_path(path: str) -> str:
    """A relative path chosen in `items`, normalised.

    Raises:
        Unready: absolute, empty, or with a ".." element.
    """
    pure = PurePosixPath(path)
    parts = pure.parts
    if not parts or pure.is_absolute() or ".." in path.split("/") or "\0" in path:
        raise Unready(f"invalid path {path[:64]!r}: use a relative path without '..'")
    if parts[0].startswith("..") or len(path) > _MAX_PATH:
        raise Unready(f"invalid path {path[:64]!r}: it starts with '..' or is over {_MAX_PATH} bytes")
    return str(pure)


def write(directory: Path, files: Mapping[str, File], *, group: int | None = None) -> bool:
    """Make a directory hold exactly these files.

    Args:
        directory: exists, and only we write in it.
        files: relative path → content; paths as `check_path` returns them.
        group: group that shall be able to read everything (fsGroup), or None.

    Returns:
        whether anything changed.

    Raises:
        OSError: the old content is then still in place.
    """
    root = os.open(directory, _DIRECTORY)
    try:
        old = _read_link(root, _DATA)
        if old is not None and _same(root, old, files, group):
            return False
        new = f"..{time.strftime('%Y_%m_%d_%H_%M_%S', time.gmtime())}.{secrets.token_hex(4)}"
        try:
            _write_generation(root, new, files, group)
            with suppress(FileNotFoundError):
                os.unlink(_NEW_DATA, dir_fd=root)
            os.symlink(new, _NEW_DATA, dir_fd=root)
            os.rename(_NEW_DATA, _DATA, src_dir_fd=root, dst_dir_fd=root)
        except OSError:
            _remove(root, new)
            raise
        _link_names(root, {PurePosixPath(path).parts[0] for path in files})
        if group is not None:
            os.fchown(root, -1, group)
            os.fchmod(root, os.fstat(root).st_mode & 0o7777 | 0o2550)
        for name in os.listdir(root):
            if name.startswith("..") and name not in (_DATA, new):
                _remove(root, name)
        return True
    finally:
        os.close(root)


def is_written(directory: Path) -> bool:
    """Whether a generation is in place, all of it: the link to it is made last."""
    try:
        root = os.open(directory, _DIRECTORY)
    except OSError:
        return False
    try:
        return _read_link(root, _DATA) is not None
    finally:
        os.close(root)


def _read_link(root: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=root)
    except OSError:
        return None


def _bits(file: File, group: int | None) -> int:
    return file.mode | 0o440 if group is not None else file.mode


def _same(root: int, old: str, files: Mapping[str, File], group: int | None) -> bool:
    """Whether the current generation is just these files, and every name leads to it."""
    if "/" in old or not old.startswith(".."):
        return False
    try:
        base = os.open(old, _DIRECTORY, dir_fd=root)
    except OSError:
        return False
    try:
        present = 0
        for _, _, names, _ in os.fwalk(".", dir_fd=base):
            present += len(names)
        if present != len(files):
            return False
        return all(_same_file(base, path, file, group) for path, file in files.items()) and all(
            _read_link(root, name) == f"{_DATA}/{name}"
            for name in {PurePosixPath(path).parts[0] for path in files}
        )
    finally:
        os.close(base)


def _same_file(base: int, path: str, file: File, group: int | None) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=base)
    except OSError:
        return False
    with os.fdopen(fd, "rb") as opened:
        facts = os.fstat(fd)
        return (
            facts.st_size == len(file.data)
            and facts.st_mode & 0o7777 == _bits(file, group)
            and (file.uid is None or facts.st_uid == file.uid)
            and (group is None or facts.st_gid == group)
            and opened.read() == file.data
        )


def _write_generation(root: int, name: str, files: Mapping[str, File], group: int | None) -> None:
    os.mkdir(name, 0o755, dir_fd=root)
    base = os.open(name, _DIRECTORY, dir_fd=root)
    try:
        _open_folder(base, group)
        for path, file in files.items():
            _write_file(base, PurePosixPath(path).parts, file, group)
    finally:
        os.close(base)


def _open_folder(fd: int, group: int | None) -> None:
    os.fchmod(fd, 0o755)
    if group is not None:
        os.fchown(fd, -1, group)
        os.fchmod(fd, 0o2755)


def _write_file(base: int, parts: tuple[str, ...], file: File, group: int | None) -> None:
    folder = os.dup(base)
    try:
        for part in parts[:-1]:
            with suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=folder)
            inner = os.open(part, _DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
            _open_folder(folder, group)
        fd = os.open(parts[-1], _CREATE, 0o600, dir_fd=folder)
    finally:
        os.close(folder)
    with os.fdopen(fd, "wb") as opened:
        opened.write(file.data)
        if file.uid is not None or group is not None:
            os.fchown(fd, -1 if file.uid is None else file.uid, -1 if group is None else group)
        os.fchmod(fd, _bits(file, group))


def _link_names(root: int, wanted: set[str]) -> None:
    """Give every first path element a link into `..data`; take away those of files that are gone."""
    for name in wanted:
        if _read_link(root, name) == f"{_DATA}/{name}":
            continue
        _remove(root, name)
        os.symlink(f"{_DATA}/{name}", name, dir_fd=root)
    for name in os.listdir(root):
        if not name.startswith("..") and name not in wanted:
            _remove(root, name)


def _remove(root: int, name: str) -> None:
    """Delete a link, a file, or one of our folders; links are never followed."""
    try:
        os.unlink(name, dir_fd=root)
        return
    except FileNotFoundError:
        return
    except OSError:
        pass
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=root)
    except FileNotFoundError:
        return
    try:
        for entry in os.listdir(fd):
            _remove(fd, entry)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=root)
