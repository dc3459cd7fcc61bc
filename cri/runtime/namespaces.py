"""A pod's namespaces: made once by its supervisor, which stays in them and so keeps them.

Network, IPC and UTS namespaces become the supervisor's own, and every container inherits them by being its
child. The mount namespace stays the host's, because the network namespace is bound where CNI plugins look for
it. A PID namespace for all containers gets a process 1 of ours that only reaps.
"""

from __future__ import annotations

import _signal as signal
import _socket
import errno
import fcntl
import os
import struct

from cri.runtime import sockets, userns, wire
from host import syscalls
from host.errors import HostError, from_errno, from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from cri.runtime.sockets import Socket

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_IFREQ = struct.Struct("16sH22x")


def enter(spec: dict[str, Any], folder: bytes, *, has_network: bool = False) -> int:
    """Make this process's namespaces the pod's; a user namespace of the pod owns them but is not entered.

    Args:
        spec: what `messages.sandbox` writes.
        folder: the sandbox's state folder; shared memory is mounted in its `shm`.
        has_network: the network namespace of this process is the pod's already, unless the pod has a user
            namespace.

    Returns:
        a descriptor of the pod's user namespace, or -1 where that is the host's.

    Raises:
        HostError: what was made on the host (the bind of the network namespace, shared memory) may be there;
            the client removes both.
    """
    flags = 0 if spec["host_network"] or (has_network and not spec["userns"]) else syscalls.CLONE_NEWNET
    flags |= 0 if spec["host_uts"] else syscalls.CLONE_NEWUTS
    flags |= 0 if spec["host_ipc"] else syscalls.CLONE_NEWIPC
    owner = -1
    if spec["userns"]:
        owner = userns.make(spec["userns"], flags)
    elif flags:
        syscalls.unshare(flags)
    if not spec["host_network"]:
        _loopback_up()
        if spec["netns_path"]:
            bind_netns(spec["netns_path"])
    if not spec["host_uts"] and spec["hostname"]:
        syscalls.sethostname(spec["hostname"])
    if not spec["host_ipc"]:
        _mount_shm(folder + b"/shm", spec["shm_size"], spec["userns"])
    if spec["userns"] and spec["sysctls"]:
        userns.act_as(spec["userns"]["root"])  # those of IPC are writable for their own root only
    for name, value in spec["sysctls"].items():
        write_sysctl(name, value)
    if spec["userns"] and spec["sysctls"]:
        userns.act_as([0, 0])
    return owner


def bind_netns(path: bytes) -> None:
    """Bind this process's network namespace to a file, where it outlives the process."""
    flags = os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            fd = os.open(path, flags, 0o444)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            fd = os.open(path, flags, 0o444)
        os.close(fd)
    except OSError as exc:
        raise from_oserror(exc, f"make {os.fsdecode(path)}") from exc
    syscalls.mount(b"/proc/self/ns/net", path, b"", syscalls.MS_BIND)


def _loopback_up() -> None:
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM, 0)
    try:
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
        _, flags = _IFREQ.unpack(answer)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))
    finally:
        sock.close()


def _mount_shm(path: bytes, size: int, owner: dict[str, Any] | None) -> None:
    os.mkdir(path, 0o700)
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    uid, gid = owner["root"] if owner else (0, 0)
    syscalls.mount(b"shm", path, b"tmpfs", flags, b"mode=1777,size=%d,uid=%d,gid=%d" % (size, uid, gid))


def write_sysctl(name: str, value: bytes) -> None:
    """Set one sysctl of this process's namespaces; the client has checked the name (see `messages`).

    The file is opened on the real /proc/sys, without links or other mounts on the way (CVE-2025-52881).
    """
    base = os.open(b"/proc/sys", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = syscalls.openat2(
            base,
            name.replace(".", "/").encode(),
            flags=os.O_WRONLY,
            resolve=syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV,
        )
    except HostError as exc:
        raise from_oserror(exc, f"sysctl {name}") from exc
    finally:
        os.close(base)
    try:
        if os.write(fd, value) != len(value):
            raise from_errno(errno.EIO, f"sysctl {name}")
    except OSError as exc:
        raise from_oserror(exc, f"sysctl {name}={value.decode(errors='replace')}") from exc
    finally:
        os.close(fd)


def start_reaper(spec: dict[str, Any], owner: int) -> int:
    """Make a PID namespace and fork its process 1, which holds it open and reaps orphans.

    Args:
        spec: what `messages.sandbox` writes.
        owner: the pod's user namespace, or -1.

    Returns:
        its pidfd; children of this process that are to live there are forked after `setns`.

    Raises:
        HostError: it could not be forked, or not move into its cgroup.
    """
    ready, told = os.pipe2(os.O_CLOEXEC)
    try:
        if owner < 0:
            pid, pidfd = fork_into(-1, spec["birthplace"])
        else:
            pid, pidfd = fork_as_root_of(owner, -1, spec["birthplace"], lambda: join(spec["tasks_files"]))
        if pid == 0:
            try:
                if owner < 0:
                    join(spec["tasks_files"])
                os.write(told, b".")
                _reap_for_ever()
            finally:
                os._exit(1)
    finally:
        os.close(told)
    try:
        if not os.read(ready, 1):
            os.close(pidfd)
            raise from_errno(errno.EIO, "attach the pod's reaper to its cgroup")
    finally:
        os.close(ready)
    return pidfd


def fork_into(pid_namespace: int | None, birthplace: bytes) -> tuple[int, int]:
    """Fork, with the child in a PID namespace and a cgroup.

    Args:
        pid_namespace: a pidfd of a process whose PID namespace to be born in, -1 for a new one, None for
            this process's (the host's).
        birthplace: cgroup2 folder to be born in; empty for this process's.

    Returns:
        (process id, pidfd) in the parent, (0, -1) in the child.
    """
    joins = pid_namespace is not None and pid_namespace >= 0
    flags = syscalls.CLONE_NEWPID if pid_namespace == -1 else 0
    cgroup, pid = -1, -1
    try:
        if birthplace:
            cgroup = os.open(birthplace, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if joins and pid_namespace is not None:
            syscalls.setns(pid_namespace, syscalls.CLONE_NEWPID)
        pid, pidfd = syscalls.fork(flags=flags, cgroup=cgroup)
    except OSError as exc:
        raise from_oserror(exc, f"fork into cgroup {os.fsdecode(birthplace)}") from exc
    finally:
        if pid != 0:
            if joins:
                return_to_own_pid_namespace()
            if cgroup >= 0:
                os.close(cgroup)
    return pid, pidfd


def fork_as_root_of(
    owner: int, pid_namespace: int, birthplace: bytes, before: Callable[[], None]
) -> tuple[int, int]:
    """The same, with the child as root of a user namespace, which then owns a new PID namespace.

    A PID namespace belongs to the user namespace of its maker. So one child goes into the user namespace and
    from there has the one that counts, which is our child all the same (CLONE_PARENT).

    Args:
        owner: the user namespace.
        pid_namespace: a pidfd, or -1 for a new one.
        before: what the first child is to do while it is still the host's root: cgroups, limits.
    """
    ours, theirs = sockets.pair(sockets.PACKETS)
    try:
        between, pidfd = fork_into(None, birthplace)
        if between == 0:
            ours.close()
            _have_child(owner, pid_namespace, before, theirs)
            return 0, -1
        theirs.close()
        os.close(pidfd)
        found, fds = wire.receive_packet(ours)
        os.waitpid(between, 0)
    finally:
        theirs.close()
        ours.close()
    if not fds:
        code, words = found or (errno.EIO, "it ended")
        raise from_errno(code, "enter the pod's user namespace", words)
    return found, fds[0]


def _have_child(owner: int, pid_namespace: int, before: Callable[[], None], parent: Socket) -> None:
    """Returns in the second child only; the first one ends here when it has told how it went."""
    pid = -1
    try:
        before()
        if pid_namespace >= 0:
            syscalls.setns(pid_namespace, syscalls.CLONE_NEWPID)
        userns.enter(owner)
        kind = syscalls.CLONE_NEWPID if pid_namespace < 0 else 0
        pid, pidfd = syscalls.fork(flags=kind | syscalls.CLONE_PARENT)
        if pid:
            wire.send_packet(parent, pid, (pidfd,))
    except OSError as exc:
        wire.send_packet(parent, [exc.errno or errno.EIO, str(exc)])
    finally:
        if pid:
            os._exit(0)


def return_to_own_pid_namespace() -> None:
    """Let children be born in this process's own PID namespace again."""
    fd = os.open(b"/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(fd, syscalls.CLONE_NEWPID)
    finally:
        os.close(fd)


def join(tasks_files: list[bytes]) -> None:
    """Move this process, which has one thread, into the v1 cgroups whose `tasks` these are."""
    for path in tasks_files:
        write_number(path, 0)


def write_number(path: bytes, number: int) -> None:
    """Into a file of a cgroup: a process id to be moved, or 1 to cgroup.kill."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d" % number)
        finally:
            os.close(fd)
    except OSError as exc:
        raise from_oserror(exc, f"write {number} to {os.fsdecode(path)}") from exc


def _reap_for_ever() -> NoReturn:
    """Process 1 of a shared PID namespace: an empty root, no privileges, nothing to read in /proc/1.

    Containers of the pod see it, so it must be worthless to them: it is not dumpable, has no capability and
    its root is an empty read-only tmpfs.
    """
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    os.setsid()
    syscalls.set_process_name(b"pause")
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(b"none", b"/", b"", syscalls.MS_REC | syscalls.MS_SLAVE)
    empty = syscalls.new_mount(b"tmpfs", ((b"size", b"4k"),), attributes=syscalls.MOUNT_ATTR_RDONLY)
    place = os.open(b"/proc", os.O_PATH | os.O_DIRECTORY)  # any folder does: this mount namespace is our own
    syscalls.move_mount(empty, place)
    os.fchdir(empty)
    syscalls.pivot_root(b".", b".")
    syscalls.umount(b".", syscalls.MNT_DETACH)
    syscalls.close_range(0)
    syscalls.capset(effective=0, permitted=0, inheritable=0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT})
    while True:
        if signal.sigwait({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}) != signal.SIGCHLD:
            continue
        while _reap_one():
            pass


def _reap_one() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False
