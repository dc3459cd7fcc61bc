"""From fork to exec: the life of a container's first process before it is the container's, and of execs.

Order: out of the supervisor's signals, descriptors and dumpability; out-of-memory score; own mount namespace,
root, pivot; cgroup namespace; "ready" is told, the host's root let go of and the start message awaited;
limits, working directory, identity, capabilities, filter, exec. After the pivot nothing is imported, decoded
or looked up in NSS: the image would answer (CVE-2019-14271). The import system is switched off before.
Nothing here returns to the supervisor's code: every way ends in exec or `_exit`.
"""

from __future__ import annotations

import _signal as signal
import errno
import fcntl
import os
import resource
import stat
import sys
import termios

from cri.runtime import identity, namespaces, rooted, rootfs, sockets, userns, wire
from host import syscalls
from host.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from cri.runtime.sockets import Socket

FAILED = 128
CONTROL = 3
"""Descriptor of the socket to the supervisor in a child; the ones after it are what the child was given."""
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_MESSAGE = 1 << 16
_CHANGED_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGXFSZ,
)
"""What the interpreter and the supervisor have changed; the spawner began with all at their default."""


class StepError(Exception):
    """A message for the API that already names the step."""

    def __init__(self, step: str, code: int, message: str) -> None:
        super().__init__(message)
        self.step, self.code, self.message = step, code, message


class Step:
    """Where we are, for the error message (`report`)."""

    name = "namespaces"


def run_container(process: bytes, control: int, stdio: tuple[int, int, int], idmaps: list[int]) -> NoReturn:
    """Become the container's first process; called in the forked child.

    Args:
        process: the "process" of what `messages.container` writes.
        control: SOCK_SEQPACKET socket to the supervisor.
        stdio: descriptors for 0, 1 and 2; replaced by the terminal's with tty.
        idmaps: user namespaces of its ID-mapped mounts.
    """
    run_child(stdio, (control, *idmaps), lambda step, fds: _container(wire.decode(process), fds, step))


def run_exec(
    process: bytes, changes: dict[str, Any], control: int, stdio: tuple[int, int, int], pidfd: int
) -> NoReturn:
    """Become a further process of the container whose first process `pidfd` is.

    Called in a child that was forked into the container's PID namespace; the rest is entered here.

    Args:
        process: as for `run_container`, of the same container.
        changes: what is different from it.
    """
    run_child(
        stdio,
        (control, pidfd),
        lambda step, fds: _exec({**wire.decode(process), **changes}, sockets.adopt(fds[0]), step),
    )


def run_child(
    stdio: tuple[int, int, int], keep: tuple[int, ...], body: Callable[[Step, tuple[int, ...]], None]
) -> NoReturn:
    """Drop everything of the supervisor but these descriptors and do `body`, which gets the kept ones anew.

    An error is told on the first of `keep`, the socket to the supervisor.
    """
    step = Step()
    control = keep[0]
    try:
        control = leave_supervisor(stdio, keep)
        body(step, tuple(range(control, control + len(keep))))
    except BaseException as exc:
        os.write(control, report(exc, step))
    finally:
        os._exit(FAILED)


def report(exc: BaseException, step: Step) -> bytes:
    """What went wrong, for `StartFailed`."""
    if isinstance(exc, StepError):
        facts = {"errno": exc.code, "message": exc.message, "step": exc.step}
    elif isinstance(exc, OSError):
        facts = {"errno": exc.errno or errno.EIO, "message": f"{step.name}: {exc}", "step": step.name}
    else:
        facts = {"errno": errno.EIO, "message": f"{step.name}: {exc!r}", "step": step.name}
    return wire.encode(facts)


def leave_supervisor(stdio: tuple[int, int, int], keep: tuple[int, ...]) -> int:
    """Drop everything inherited. Afterwards 0, 1, 2 are `stdio`, CONTROL and up are `keep`, the rest closed.

    Returns:
        CONTROL.
    """
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    signal.set_wakeup_fd(-1)
    for number in _CHANGED_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    os.umask(0o022)
    sys.meta_path.clear()
    sys.path_hooks.clear()
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (*stdio, *keep)]
    for target, fd in enumerate(above):
        os.dup2(fd, target, inheritable=target < CONTROL)
    syscalls.close_range(len(above))
    return CONTROL


def _container(spec: dict[str, Any], fds: tuple[int, ...], step: Step) -> None:
    settle(spec, step)
    root, pts, who = build_root(spec, fds[1:], step)
    step.name = "terminal"
    masters: tuple[int, ...] = (open_terminal(pts, root),) if spec["tty"] else ()
    step.name = "rootfs"
    rootfs.enter(root)
    finish(spec, sockets.adopt(fds[0]), who, masters, step)


def settle(spec: dict[str, Any], step: Step) -> None:
    """What only the host's root may do for a process: its v1 cgroups, out-of-memory score and labels."""
    step.name = "cgroup"
    namespaces.join(spec["tasks_files"])
    step.name = "oom_score_adj"
    set_oom_score(spec["oom_score_adj"])
    step.name = "security label"
    set_labels(spec["labels"])


def build_root(spec: dict[str, Any], idmaps: tuple[int, ...], step: Step) -> tuple[int, int, dict[str, Any]]:
    """Mount everything, in a mount namespace of our own; the host's root is still "/" afterwards.

    Args:
        idmaps: user namespaces that the plan refers to, the pod's own first where it has one.

    Returns:
        descriptors of the root and of its devpts; who the process is to be.
    """
    plan, owner = spec["rootfs"], spec["userns"]
    step.name = "mount"
    sources = rootfs.Sources(plan, idmaps)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    step.name = "rootfs"
    root = rootfs.open_root(plan, owner, idmaps[0] if owner else -1)
    if owner:
        userns.act_as(owner["root"])
    step.name = "mount"
    pts = rootfs.build(root, plan, sources)
    step.name = "user"
    who = identity.resolve(spec["user"], rooted.read(root, b"/etc/passwd"), rooted.read(root, b"/etc/group"))
    step.name = "cwd"
    make_cwd(root, spec["cwd"])
    return root, pts, who


def finish(
    spec: dict[str, Any], channel: Socket, who: dict[str, Any], masters: tuple[int, ...], step: Step
) -> None:
    """In the container's root: say that it is ready, await the start message, become its program."""
    masters = _keep_only(masters)
    step.name = "cgroup"
    # Who may change the node's cgroups (privileged) must know them by the node's names.
    if spec["userns"] or not spec["rootfs"]["writable_sys"]:
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)
    wire.send_packet(channel, who, masters)
    for fd in masters:
        os.close(fd)
    if not spec["userns"]:
        # Takes time that the answer to CreateContainer need not wait for; nothing of the image runs before.
        step.name = "rootfs"
        rootfs.leave_host()
    if not channel.recv(_MAX_MESSAGE):
        os._exit(FAILED)
    _become(spec, who, step)


def _exec(spec: dict[str, Any], channel: Socket, step: Step) -> None:
    pidfd = CONTROL + 1
    settle(spec, step)
    step.name = "namespaces"
    flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWCGROUP
    if spec["userns"]:
        set_rlimits(spec["rlimits"])
        syscalls.setns(pidfd, flags | syscalls.CLONE_NEWUSER)
        userns.become_root()
    else:
        syscalls.setns(pidfd, flags)
    os.close(pidfd)
    if spec["tty"]:
        step.name = "terminal"
        root = os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        wire.send_packet(channel, {}, (open_terminal(find_terminals(root), -1),))
        syscalls.close_range(CONTROL + 1)
    _become(spec, spec["who"], step)


def set_oom_score(score: int) -> None:
    """Lowering needs CAP_SYS_RESOURCE: without it the present score stays."""
    try:
        fd = os.open(b"/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d" % score)
        finally:
            os.close(fd)
    except PermissionError:
        return


def set_labels(labels: list[list[bytes]]) -> None:
    """What the next exec will be confined by, told to the security modules.

    Written while /proc is still the host's: a container's own may lead anywhere (CVE-2019-19921).
    """
    for path, label in labels:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, label)
        finally:
            os.close(fd)


def make_cwd(root: int, cwd: bytes) -> None:
    """A missing working directory is made, as runc does; on a read-only root its absence is told at start."""
    if not cwd.strip(b"/"):
        return
    try:
        os.close(rooted.folder(root, cwd))
    except HostError as exc:
        if exc.errno not in (errno.EROFS, errno.ENOTDIR, errno.EINVAL):
            raise


def _keep_only(fds: tuple[int, ...]) -> tuple[int, ...]:
    """Close everything but 0, 1, 2, CONTROL and (at most one) `fds`: nothing of the host stays open."""
    for target, fd in enumerate(fds, CONTROL + 1):
        if fd != target:
            os.dup2(fd, target, inheritable=False)
    syscalls.close_range(CONTROL + 1 + len(fds))
    return tuple(range(CONTROL + 1, CONTROL + 1 + len(fds)))


def find_terminals(root: int) -> int:
    """The devpts of a container whose root this is."""
    return rooted.find(root, b"dev/pts", os.O_PATH | os.O_DIRECTORY, syscalls.RESOLVE_NO_SYMLINKS)


def open_terminal(pts: int, root: int) -> int:
    """A new terminal as 0, 1, 2 and controlling terminal.

    The other end is found through the master (TIOCGPTPEER), never by a path in the image (CVE-2025-52565).

    Args:
        pts: the container's devpts.
        root: the root to make /dev/console in, or -1 for none.

    Returns:
        the master's descriptor.
    """
    master = os.open(b"ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=pts)
    fcntl.ioctl(master, _TIOCSPTLCK, b"\0\0\0\0")
    slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
    if root >= 0:
        target = rooted.file(root, b"/dev/console")
        console = syscalls.open_tree(slave, b"", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
        syscalls.move_mount(console, target)
    for number in range(3):
        os.dup2(slave, number, inheritable=True)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    return master


def _become(spec: dict[str, Any], who: dict[str, Any], step: Step) -> None:
    """Limits, working directory, identity, exec: from here on only numbers and bytes already at hand."""
    argv = spec["argv"]
    env = _environment(spec["env"], who["home"])
    step.name = "rlimits"
    set_rlimits(spec["rlimits"])
    step.name = "user"
    for number in range(3):
        _own_stdio(number, who["uid"])
    step.name = "cwd"
    entered = _enter_cwd(spec["cwd"], final=False)
    step.name = "user"
    identity.put_down(who, spec["privileges"])
    if not entered:
        step.name = "cwd"
        _enter_cwd(spec["cwd"], final=True)
    if not os.getcwdb().startswith(b"/"):
        raise StepError("cwd", errno.ENOENT, "working directory is outside of the container")
    raise _execute(argv, env)


def _environment(pairs: list[list[bytes]], home: bytes) -> dict[bytes, bytes]:
    env = {name: value for name, value in pairs}
    env.setdefault(b"HOME", home)
    return env


def set_rlimits(limits: list[list[int]]) -> None:
    """Raising a hard limit needs CAP_SYS_RESOURCE: without it the present one is kept."""
    for which, soft, hard in limits:
        try:
            resource.setrlimit(which, (soft, hard))
        except (PermissionError, ValueError):
            _, ceiling = resource.getrlimit(which)
            top = hard if ceiling == resource.RLIM_INFINITY else min(hard, ceiling)
            resource.setrlimit(which, (min(soft, top), top))


def _own_stdio(number: int, uid: int) -> None:
    """Pipes and terminals become the user's, or it could not reopen /dev/stdout."""
    status = os.fstat(number)
    if status.st_uid != uid and (stat.S_ISFIFO(status.st_mode) or os.isatty(number)):
        os.fchown(number, uid, -1)


def _enter_cwd(cwd: bytes, *, final: bool) -> bool:
    try:
        os.chdir(cwd or b"/")
    except OSError as exc:
        if not final and exc.errno in (errno.EACCES, errno.EPERM):
            return False
        words = f'chdir to cwd ("{cwd.decode(errors="replace")}"): {os.strerror(exc.errno or 0).lower()}'
        raise StepError("cwd", exc.errno or errno.EIO, words) from exc
    return True


def _execute(argv: list[bytes], env: dict[bytes, bytes]) -> StepError:
    """execve, with a search along PATH for a name without a slash; returns only what went wrong."""
    name = argv[0]
    if b"/" in name:
        return _exec_error(name, _try_exec(name, argv, env))
    code = errno.ENOENT
    for folder in env.get(b"PATH", _PATH).split(b":"):
        failed = _try_exec((folder or b".") + b"/" + name, argv, env)
        if failed not in (errno.ENOENT, errno.ENOTDIR):
            code = failed
        if failed not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            break
    if code == errno.ENOENT:
        words = f'exec: "{name.decode(errors="replace")}": executable file not found in $PATH'
        return StepError("exec", code, words)
    return _exec_error(name, code)


def _try_exec(path: bytes, argv: list[bytes], env: dict[bytes, bytes]) -> int:
    try:
        os.execve(path, argv, env)  # noqa: S606 - becoming the container's program is what we are for
    except OSError as exc:
        return exc.errno or errno.EIO


def _exec_error(name: bytes, code: int) -> StepError:
    return StepError("exec", code, f'exec: "{name.decode(errors="replace")}": {os.strerror(code).lower()}')
