"""hostPath volumes: a file or directory of the node, checked against the type the pod names.

Nothing here is ever deleted, at no time. Type "" checks nothing, as the API says; a missing path becomes a
directory then, because that is what container runtimes do with a missing bind source.
Source: Kubernetes API, core/v1 HostPathVolumeSource.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agent.volumes.base import Context, PreparedVolume, Unready
from host.errors import TimedOut
from host.processes import ProcessFailed

if TYPE_CHECKING:
    from agent.api.structs import Volume

_CHECKS: dict[str, tuple[Callable[[int], bool], str]] = {
    "Directory": (stat.S_ISDIR, "directory"),
    "DirectoryOrCreate": (stat.S_ISDIR, "directory"),
    "File": (stat.S_ISREG, "file"),
    "FileOrCreate": (stat.S_ISREG, "file"),
    "Socket": (stat.S_ISSOCK, "socket file"),
    "CharDevice": (stat.S_ISCHR, "character device"),
    "BlockDevice": (stat.S_ISBLK, "block device"),
}


async def set_up(context: Context, volume: Volume) -> PreparedVolume:
    """Check (and for the OrCreate types make) the path.

    Raises:
        Unready: the wrong type, missing, or a path that is not absolute.
    """
    source = volume.host_path
    if source is None:
        raise Unready("not a hostPath")
    if not source.path.startswith("/") or ".." in source.path.split("/"):
        raise Unready(f"hostPath {source.path!r} must be absolute and must not contain '..'")
    path = context.host_root / source.path.lstrip("/")
    remote = await check_where_it_is(context, path, source.type, shown=source.path)
    return PreparedVolume(name=volume.name, host_path=path, remote=remote)


async def check_where_it_is(context: Context, path: Path, kind: str, *, shown: str) -> bool:
    """`check`, in a child where the path is on another machine's file system; whether it is.

    Raises:
        Unready: as `check`, or the file system does not answer.
    """
    mounted = await asyncio.to_thread(context.mounter.mount_at, path)
    if mounted is None or not mounted.remote:
        await asyncio.to_thread(check, path, kind, shown=shown)
        return False
    try:
        await context.children.call(f"hostPath {path}", __name__, [str(path), kind, shown])
    except ProcessFailed as exc:
        raise Unready(exc.stderr or str(exc)) from exc
    except TimedOut as exc:
        raise Unready(f"hostPath {shown}: {mounted.kind} {mounted.source} does not answer: {exc}") from exc
    return True


def _child() -> int:
    """The child of `check_where_it_is`: arguments as JSON, errors on standard error."""
    path, kind, shown = json.loads(sys.argv[1])
    try:
        check(Path(path), kind, shown=shown)
    except (Unready, OSError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def check(path: Path, kind: str, *, shown: str) -> None:
    """Raise Unready unless the path is of that kind; make what the kind allows to make.

    Args:
        path: where it is.
        kind: a HostPathType.
        shown: the path for messages.
    """
    try:
        if kind in ("", "DirectoryOrCreate") and not path.exists():
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        elif kind == "FileOrCreate":
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644))
    except IsADirectoryError:
        pass
    except OSError as exc:
        raise Unready(f"hostPath {shown}: {(exc.strerror or str(exc)).lower()}") from exc
    if kind == "":
        return
    if kind not in _CHECKS:
        raise Unready(f"hostPath type {kind!r} is unknown: use one of '', {', '.join(_CHECKS)}")
    matches, words = _CHECKS[kind]
    try:
        mode = os.stat(path).st_mode
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise Unready(f"hostPath type check failed: {shown} is not a {words}: {reason}") from exc
    if not matches(mode):
        raise Unready(f"hostPath type check failed: {shown} is not a {words}")


if __name__ == "__main__":
    raise SystemExit(_child())
