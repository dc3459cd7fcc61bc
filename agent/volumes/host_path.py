"""hostPath volumes: a file or directory of the node, checked against the type the pod names.

Nothing here is ever deleted, at no time. Type "" checks nothing, as the API says; a missing path becomes a
directory then, because that is what container runtimes do with a missing bind source.
Source: Kubernetes API, core/v1 HostPathVolumeSource.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agent.volumes.base import Context, PreparedVolume, Unready

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
    await asyncio.to_thread(check, path, source.type, shown=source.path)
    return PreparedVolume(name=volume.name, host_path=path)


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
