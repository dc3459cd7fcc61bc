"""User namespaces: made for a pod or for an ID-mapped mount, and entered. See user_namespaces(7), KEP-127.

A pod's is made first and then, by a process in it, the pod's other namespaces: they belong to it, so that
root of the pod may set up its network and root of the node remains out of reach.

Maps are the dicts that `idmaps.message` and `idmaps.pod` write.
"""

from __future__ import annotations

import errno
import os

from cri.runtime import sockets
from host import syscalls
from host.errors import HostError, from_errno, from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cri.runtime.sockets import Socket

_GO = b"g"


def make(maps: dict[str, Any], flags: int = 0) -> int:
    """Make a user namespace; a child holds it until it has a descriptor.

    Args:
        flags: CLONE_NEW* of further namespaces that it is to own; this process moves into those.

    Returns:
        a descriptor of the user namespace, which lives as long as it.

    Raises:
        HostError: the kernel allows none, or not these maps.
    """
    ours, theirs = sockets.pair(sockets.PACKETS)
    fd = pidfd = -1
    try:
        pid, pidfd = syscalls.fork(flags=syscalls.CLONE_NEWUSER)
        if pid == 0:
            _hold(theirs, ours, flags)
        theirs.close()
        try:
            fd = _hand_over(pid, maps, ours)
            if flags:
                syscalls.setns(pidfd, flags)
        finally:
            ours.close()
            os.waitpid(pid, 0)
    except OSError as exc:
        if fd >= 0:
            os.close(fd)
        raise from_oserror(exc, "make a user namespace") from exc
    finally:
        theirs.close()
        ours.close()
        if pidfd >= 0:
            os.close(pidfd)
    return fd


def _hand_over(pid: int, maps: dict[str, Any], holder: Socket) -> int:
    """Write a child's maps, let it make the other namespaces, and take hold of its user namespace."""
    for name in ("uid", "gid"):
        lines = b"".join(
            b"%d %d %d\n" % (inside, outside, size) for inside, outside, size in maps[f"{name}s"]
        )
        fd = os.open(f"/proc/{pid}/{name}_map", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, lines)
        finally:
            os.close(fd)
    holder.send(_GO)
    answer = holder.recv(1)
    if answer != b"\0":
        raise from_errno(answer[0] if answer else errno.EIO, "make the namespaces it owns")
    return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def _hold(channel: Socket, other: Socket, flags: int) -> None:
    """The child: make the other namespaces as root of this one, once its maps are there; end when told."""
    try:
        other.close()
        if channel.recv(1):
            code = 0
            try:
                if flags:
                    become_root()
                    syscalls.unshare(flags)
            except OSError as exc:
                code = exc.errno or errno.EIO
            channel.send(bytes([code]))
            channel.recv(1)
    finally:
        os._exit(0)


def open_all(wanted: list[dict[str, Any]], pod: int) -> list[int]:
    """A descriptor for each of a container's maps; the caller closes them.

    Args:
        wanted: `idmaps` of what `messages.container` writes.
        pod: the pod's user namespace, whose maps are the first then; or -1.
    """
    fds: list[int] = []
    try:
        for maps in wanted:
            fds.append(make(maps) if fds or pod < 0 else os.dup(pod))
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    return fds


def enter(fd: int) -> None:
    """Move this process into a user namespace, as its root. There is no way back."""
    syscalls.setns(fd, syscalls.CLONE_NEWUSER)
    become_root()


def become_root() -> None:
    """Be user and group 0 of the user namespace that this process has just come into, with its privileges.

    What the process was before stays unreadable for whoever is root there already.
    """
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


def act_as(root: list[int]) -> None:
    """Let this process, the host's root, act as the user and group that are a pod's root, or [0, 0] again.

    What it makes then belongs to the pod's root. Its capabilities stay all the same.
    """
    syscalls.prctl(syscalls.PR_SET_SECUREBITS, syscalls.SECBIT_NO_SETUID_FIXUP)
    uid, gid = root
    os.setegid(gid)
    os.seteuid(uid)
    if uid == 0:
        syscalls.prctl(syscalls.PR_SET_SECUREBITS, 0)


def give(pipes: tuple[int, ...], maps: dict[str, Any] | None) -> None:
    """Make pipes belong to a pod's root, so that it can hand them on to the container's user."""
    if maps:
        for fd in pipes:
            os.fchown(fd, *maps["root"])


def map_mount(mount: int, fd: int, what: str) -> None:
    """Show a detached mount's files with the ids of a user namespace.

    Raises:
        HostError: its file system cannot do that.
    """
    try:
        syscalls.mount_setattr(mount, set=syscalls.MOUNT_ATTR_IDMAP, userns=fd)
    except HostError as exc:
        if exc.errno == errno.EINVAL:
            words = f"ID-mapped mount of {what}: its file system cannot be ID-mapped by this kernel"
            raise from_errno(errno.EOPNOTSUPP, words) from exc
        raise from_oserror(exc, f"ID-mapped mount of {what}") from exc
