"""subPath mounts: one file or directory inside a volume, bound so that no link can lead out of it.

The pod writes the volume, so every name in it may be a link, and may change between a check and its use
(CVE-2017-1002101, CVE-2021-25741). So the kernel resolves the path beneath the volume's descriptor in one
step (openat2(2), RESOLVE_BENEATH), and that very descriptor is bound onto a place of ours, which the runtime
mounts:

    <root>/pods/<uid>/volume-subpaths/<volume>/<container>/<index of the mount>
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agent.volumes.base import Unready
from agent.volumes.children import Children
from agent.volumes.mounts import HostMounter, Mounter
from host import syscalls
from host.errors import HostError, TimedOut
from host.processes import ProcessFailed

_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def check_subpath(path: str) -> tuple[str, ...]:
    """The elements of a subPath.

    Raises:
        Unready: absolute, or with a ".." element.
    """
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise Unready(f"subPath {path[:64]!r} must be relative and must not contain '..'")
    return parts


def bind_subpath(volume: Path, parts: Sequence[str], target: Path, *, mounter: Mounter, create: bool) -> None:
    """Bind `volume/parts` onto `target`; one that is bound there already stays.

    Args:
        volume: the volume's directory on the host.
        parts: the elements of the subPath, from `check_subpath`.
        target: a path of ours, made as needed.
        mounter: does the mount.
        create: make missing directories (with the volume's own mode and owner).

    Raises:
        Unready: missing, leads out of the volume, or the volume is no directory.
        HostError: the mount was refused.
    """
    fd = _resolve(volume, parts, create=create)
    try:
        wanted = os.fstat(fd)
        target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        if _is_bound(target, mounter):
            present = os.lstat(target)
            if (present.st_dev, present.st_ino) == (wanted.st_dev, wanted.st_ino):
                return
            mounter.unmount(target)
        if stat.S_ISDIR(wanted.st_mode):
            if target.is_file():
                target.unlink()
            target.mkdir(mode=0o750, exist_ok=True)
        else:
            if target.is_dir():
                target.rmdir()
            target.touch(mode=0o640)
        mounter.bind(fd, target)
    finally:
        os.close(fd)


async def bind_subpath_in_child(
    volume: Path, parts: Sequence[str], target: Path, *, children: Children, create: bool
) -> None:
    """`bind_subpath` for a volume that another machine answers for: a child resolves and binds.

    Raises:
        Unready: as `bind_subpath`, or there was no answer in time.
    """
    wanted = [str(volume), [*parts], str(target), create]
    try:
        await children.call(f"subPath {target}", __name__, wanted)
    except ProcessFailed as exc:
        raise Unready(exc.stderr or str(exc)) from exc
    except TimedOut as exc:
        raise Unready(f"subPath {'/'.join(parts)!r}: the volume's server does not answer: {exc}") from exc


def _child() -> int:
    """The child of `bind_subpath_in_child`: arguments as JSON, errors on standard error."""
    volume, parts, target, create = json.loads(sys.argv[1])
    try:
        bind_subpath(Path(volume), parts, Path(target), mounter=HostMounter(), create=create)
    except (Unready, OSError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def _is_bound(target: Path, mounter: Mounter) -> bool:
    """ismount(3) does not see a bind within one file system; the mount table does."""
    return any(mounted.point == target for mounted in mounter.table(target))


def _resolve(volume: Path, parts: Sequence[str], *, create: bool) -> int:
    path = "/".join(parts)
    try:
        root = os.open(volume, _FOLDER)
    except OSError as exc:
        raise Unready(f"subPath {path!r}: volume {volume} is not a directory") from exc
    try:
        try:
            return syscalls.openat2(root, path or ".", flags=os.O_PATH, resolve=_RESOLVE)
        except HostError as exc:
            if exc.errno != errno.ENOENT or not create:
                raise Unready(f"failed to prepare subPath {path!r}: {_words(exc)}") from exc
        try:
            _make_folders(root, parts)
            return syscalls.openat2(root, path, flags=os.O_PATH, resolve=_RESOLVE)
        except OSError as exc:
            raise Unready(f"failed to create subPath {path!r}: {_words(exc)}") from exc
    finally:
        os.close(root)


def _words(exc: OSError) -> str:
    if exc.errno in (errno.EXDEV, errno.ELOOP):  # what RESOLVE_BENEATH and RESOLVE_NO_MAGICLINKS answer
        return "it leads out of the volume"
    return os.strerror(exc.errno or 0).lower()


def _make_folders(root: int, parts: Sequence[str]) -> None:
    """Make the missing directories one by one, each beneath a descriptor of the one before."""
    facts = os.fstat(root)
    here = os.open(".", _FOLDER, dir_fd=root)
    try:
        for index, part in enumerate(parts):
            with suppress(FileExistsError):
                os.mkdir(part, 0o750, dir_fd=here)
                made = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
                try:
                    os.fchown(made, -1, facts.st_gid)
                    os.fchmod(made, stat.S_IMODE(facts.st_mode))
                finally:
                    os.close(made)
            inner = syscalls.openat2(root, "/".join(parts[: index + 1]), flags=_FOLDER, resolve=_RESOLVE)
            os.close(here)
            here = inner
    finally:
        os.close(here)


if __name__ == "__main__":
    raise SystemExit(_child())
