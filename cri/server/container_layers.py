"""The writable folders of a container: made, filled from the image where it declares volumes, deleted.

An image decides what its layers hold, links included, so nothing here follows a path inside a layer by its
string: the image is mounted read-only on a detached mount, and paths are resolved beneath its root.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cri.runtime import rooted
from cri.server.container_image_volumes import detached_image, unmount_images
from host.errors import NotFound
from host.trees import remove_tree

_COPY_CHUNK = 1 << 20
_MAX_DEPTH = 128


def make_folders(data: Path, upper: Path, work: Path) -> None:
    """The container's folder (0700) and its overlay folders; `upper` is `/` inside, hence 0755."""
    data.mkdir(mode=0o700, parents=True)
    upper.mkdir(mode=0o755)
    upper.chmod(0o755)
    work.mkdir(mode=0o700)


def delete_folder(data: Path) -> None:
    """Delete a container's folder; a missing one is fine. Links inside are not followed.

    Raises:
        HostError: something is mounted in it that is not ours, which is named.
    """
    unmount_images(data)
    remove_tree(data)


def copy_volumes(lower: Sequence[Path], volumes: Sequence[tuple[Path, str]]) -> None:
    """Make each anonymous volume and fill it with what the image has at its path (Docker's VOLUME rule).

    Args:
        lower: the image's layers, top first.
        volumes: (new folder on the host, path in the container).
    """
    spare = volumes[0][0].parent / "empty"
    spare.mkdir(mode=0o755, exist_ok=True)
    root = detached_image(lower, spare)
    try:
        for folder, path in volumes:
            folder.mkdir(mode=0o755)
            folder.chmod(0o755)
            with suppress(NotFound, NotADirectoryError):
                source = rooted.find(root, path.encode(), os.O_RDONLY | os.O_DIRECTORY)
                try:
                    _fill(source, folder)
                finally:
                    os.close(source)
    finally:
        os.close(root)


def _fill(source: int, folder: Path) -> None:
    target = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _copy_folder(source, target, depth=0)
        _copy_owner(os.fstat(source), target)
    finally:
        os.close(target)


def _copy_owner(found: os.stat_result, target: int) -> None:
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))


def _copy_folder(source: int, target: int, *, depth: int) -> None:
    """Copy folders, regular files and links; devices, sockets and FIFOs have no business in a volume."""
    if depth > _MAX_DEPTH:
        return
    for name in os.listdir(source):
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
        elif stat.S_ISDIR(found.st_mode):
            _copy_subfolder(source, target, name, depth=depth)
        elif stat.S_ISREG(found.st_mode):
            _copy_file(source, target, name)


def _copy_subfolder(source: int, target: int, name: str, *, depth: int) -> None:
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    try:
        os.mkdir(name, 0o700, dir_fd=target)
        made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=target)
        try:
            _copy_folder(inner, made, depth=depth + 1)
            _copy_owner(os.fstat(inner), made)
        finally:
            os.close(made)
    finally:
        os.close(inner)


def _copy_file(source: int, target: int, name: str) -> None:
    reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    try:
        writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            while os.sendfile(writer, reader, None, _COPY_CHUNK):
                pass
            _copy_owner(os.fstat(reader), writer)
        finally:
            os.close(writer)
    finally:
        os.close(reader)
