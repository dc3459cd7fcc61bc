"""From fork to the runtime's own first instruction, in a child of the supervisor.

For `create` a mount namespace is made that ends with the command and with the container: in it the root is
mounted, and every volume in a folder of small names, with the flags, propagation and recursion that our own
containers' have. The runtime only puts them in their places. Nothing of it is ever mounted on the node, so
nothing can be left there.

On a machine with cgroup2 beside v1 the runtime is born in the container's cgroup2 folder and does not get to
see that hierarchy: crun refuses to work where it has a controller.

As in `init`: no import, and every way ends in exec or `_exit`.
"""

from __future__ import annotations

import os
import stat

from cri.runtime import identity, init, rooted, rootfs, wire
from host import syscalls
from host.errors import from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_ENV = {b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", b"LC_ALL": b"C"}
CONFIG = b"config.json"
MOUNTS = b"mounts"
SHM = b"shm"


class Creation:
    """What only `create` needs: processes to share namespaces with, and the maps of ID-mapped mounts."""

    def __init__(self, pod: int, process: int, idmaps: list[int]) -> None:
        """`pod`: whose network, IPC and UTS namespaces; `process`: whose PID namespace, 0 for none; `idmaps`:
        descriptors of user namespaces."""
        self.pod, self.process, self.idmaps = pod, process, idmaps


def run(
    folder: bytes,
    process: bytes,
    control: int,
    stdio: tuple[int, int, int],
    argv: list[bytes],
    creation: Creation | None,
) -> NoReturn:
    """Become a command of the runtime; called in the forked child.

    Args:
        folder: the bundle, which becomes the working directory.
        process: the "process" of what `messages.container` writes.
        control: SOCK_SEQPACKET socket that an error before exec is told on.
        stdio: descriptors for 0, 1 and 2.
        argv: program and arguments.
        creation: for `create`.
    """
    init.run_child(
        stdio,
        (control, *(creation.idmaps if creation else ())),
        lambda step, fds: _become(folder, wire.decode(process), argv, creation, fds[1:], step),
    )


def _become(
    folder: bytes,
    spec: dict[str, Any],
    argv: list[bytes],
    creation: Creation | None,
    idmaps: tuple[int, ...],
    step: init.Step,
) -> NoReturn:
    os.chdir(folder)
    init.set_oom_score(spec["oom_score_adj"])
    if creation is not None:
        _prepare(spec, creation, idmaps, step)
    elif spec["hidden"]:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(b"none", b"/", b"", syscalls.MS_REC | syscalls.MS_SLAVE)
    if spec["hidden"]:
        step.name = "cgroup"
        syscalls.umount(spec["hidden"], syscalls.MNT_DETACH)
    step.name = "runtime"
    _execute(argv)


def _execute(argv: list[bytes]) -> NoReturn:
    try:
        os.execve(argv[0], argv, _ENV)  # noqa: S606 - the program is an absolute path of the settings
    except OSError as exc:
        raise from_oserror(exc, f"execute {os.fsdecode(argv[0])}") from exc


def _prepare(spec: dict[str, Any], creation: Creation, idmaps: tuple[int, ...], step: init.Step) -> None:
    plan = spec["rootfs"]
    step.name = "mount"
    sources = rootfs.Sources(plan, idmaps)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    step.name = "rootfs"
    root = rootfs.open_root(plan)
    step.name = "mount"
    _hold_sources(sources)
    step.name = "user"
    who = identity.resolve(spec["user"], rooted.read(root, b"/etc/passwd"), rooted.read(root, b"/etc/group"))
    step.name = "cwd"
    init.make_cwd(root, spec["cwd"])
    step.name = "config"
    _write(CONFIG, _config(spec, who, creation))


def _hold_sources(sources: rootfs.Sources) -> None:
    """Every volume gets a name, `mounts/<its number>`, in a file system that goes with this namespace."""
    holder = syscalls.new_mount(b"tmpfs", ((b"mode", b"0711"),))
    place = os.open(MOUNTS, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    syscalls.move_mount(holder, place)
    names = [(b"%d" % number, fd) for number, fd in enumerate(sources.binds)]
    if sources.shm >= 0:
        names.append((SHM, sources.shm))
    for name, fd in names:
        if stat.S_ISDIR(os.stat(fd).st_mode):
            os.mkdir(name, 0o755, dir_fd=holder)
        else:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=holder))
        target = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=holder)
        syscalls.move_mount(fd, target)
        os.close(target)


def _config(spec: dict[str, Any], who: dict[str, Any], creation: Creation) -> bytes:
    """The configuration with what is known only now: the user, and processes to share namespaces with."""
    before, between, after = spec["config"]
    groups = b",".join(b"%d" % group for group in who["groups"])
    user = b'{"uid":%d,"gid":%d,"additionalGids":[%s]}' % (who["uid"], who["gid"], groups)
    namespaces = spec["namespaces"] % {b"pod": creation.pod, b"process": creation.process}
    return before + user + between + namespaces + after


def _write(name: bytes, data: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
