"""Whether this kernel, and the file systems we keep things on, can do what pods with user namespaces need.

Tried out, not guessed from a version: user namespaces may be switched off, distributions carry patches, and
which file systems can be ID-mapped has grown with every release (ext4 and xfs 5.12, layers of overlayfs 5.19,
tmpfs 6.3). Forks, so it is called before there are threads.
"""

from __future__ import annotations

import os
from pathlib import Path

from cri.runtime import userns
from host import syscalls
from host.errors import HostError

_RANGE = [[0, 65536, 65536]]


def missing(root: Path, state: Path) -> str:
    """What is missing, in words for an operator; empty when nothing is.

    Args:
        root: where image layers are kept.
        state: where the files are kept that containers get from us, for instance /etc/resolv.conf.
    """
    try:
        idmap = userns.make({"uids": _RANGE, "gids": _RANGE})
    except HostError as exc:
        return f"{exc}: see /proc/sys/user/max_user_namespaces"
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = syscalls.fork()
    if pid == 0:
        words = "probe of user namespaces failed"
        try:
            words = _tried(idmap, root, state)
        finally:
            os.write(writer, words.encode(errors="replace")[:4096])
            os._exit(0)
    for fd in (idmap, writer, pidfd):
        os.close(fd)
    os.waitpid(pid, 0)
    with os.fdopen(reader, "rb") as answer:
        return answer.read().decode()


def _tried(idmap: int, root: Path, state: Path) -> str:
    """In a process and mount namespace of its own, which take everything away again."""
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
        userns.map_mount(syscalls.new_mount(b"tmpfs"), idmap, "tmpfs")
        layer = -1
        for folder in (state, root):
            layer = syscalls.open_tree(syscalls.AT_FDCWD, str(folder), syscalls.OPEN_TREE_CLONE)
            userns.map_mount(layer, idmap, str(folder))
        syscalls.move_mount(layer, os.open(root, os.O_PATH | os.O_DIRECTORY))
        syscalls.mount("none", "/proc", "tmpfs")  # any folder will do for a second layer
        syscalls.new_mount(b"overlay", ((b"lowerdir", os.fsencode(f"{root}:/proc")),))
    except HostError as exc:
        return str(exc)
    return ""
