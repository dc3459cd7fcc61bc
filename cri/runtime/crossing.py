"""From fork to exec in a pod with a user namespace: two processes where a plain pod has one.

    supervisor ─┬─ first     born as root of the pod's user namespace, in a PID namespace that it owns; waits
                └─ builder   root of the host: mounts all of the root file system, as for any container

When the root stands, the builder crosses into the user namespace and copies its mount namespace, which then
belongs to the user namespace too. In that copy the kernel locks what came from the more privileged side
(mount_namespaces(7)): masks cannot be taken off and read-only mounts not made writable, whatever privileges
the container has. The first process takes the copy over and goes on as `init` does; the builder ends.

Nothing of a container is mounted by the pod's root, so device nodes and ID-mapped layers need no other path.
"""

from __future__ import annotations

import errno
import os

from cri.runtime import init, namespaces, rootfs, sockets, userns, wire
from host import syscalls
from host.errors import from_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def fork(
    container: dict[str, Any],
    pid_namespace: int | None,
    control: int,
    stdio: tuple[int, int, int],
    idmaps: list[int],
) -> tuple[int, int]:
    """Fork a container's first process and the one that builds its root.

    Args:
        container: what `messages.container` writes.
        pid_namespace: a pidfd of a member, or -1 for a new one.
        control: socket to the supervisor, for both.
        stdio: descriptors for 0, 1 and 2 of the container.
        idmaps: user namespaces, the pod's own first.

    Returns:
        (process id, pidfd) of the first process, in the supervisor only.

    Raises:
        HostError: nothing is left running.
    """
    if pid_namespace is None:
        raise from_errno(errno.EINVAL, "the node's PID namespace with a user namespace")
    process, birthplace = container["process"], container["birthplace"]
    waiting, handing = sockets.pair(sockets.PACKETS)
    try:
        pid, pidfd = namespaces.fork_as_root_of(
            idmaps[0], pid_namespace, birthplace, lambda: _prepare(wire.decode(process))
        )
        if pid == 0:
            keep: tuple[int, ...] = (control, waiting.fileno())
            init.run_child(stdio, keep, lambda step, fds: _first(wire.decode(process), fds, step))
        try:
            builder, builder_pidfd = namespaces.fork_into(pidfd, birthplace)
        except OSError:
            os.close(pidfd)  # nobody hands anything over now, so the first process ends
            raise
        if builder == 0:
            keep = (control, handing.fileno(), *idmaps)
            init.run_child(stdio, keep, lambda step, fds: _builder(wire.decode(process), fds, step))
        os.close(builder_pidfd)
    finally:
        waiting.close()
        handing.close()
    return pid, pidfd


def _prepare(spec: dict[str, Any]) -> None:
    """The host's root may do this for a process, root of a user namespace not."""
    init.settle(spec, init.Step())
    init.set_rlimits(spec["rlimits"])


def _first(spec: dict[str, Any], fds: tuple[int, ...], step: init.Step) -> None:
    control, waiting = fds
    step.name = "namespaces"
    who, handed = wire.receive_packet(sockets.adopt(waiting))
    if not handed:
        os._exit(init.FAILED)  # the builder has told why
    syscalls.setns(handed[0], syscalls.CLONE_NEWNS)
    masters: tuple[int, ...] = ()
    if spec["tty"]:
        step.name = "terminal"
        root = os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        masters = (init.open_terminal(init.find_terminals(root), root),)
    init.finish(spec, sockets.adopt(control), who, masters, step)


def _builder(spec: dict[str, Any], fds: tuple[int, ...], step: init.Step) -> None:
    _, handing, owner, *_ = fds
    init.settle(spec, step)
    step.name = "namespaces"
    own = os.open(b"/proc/self/ns", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    root, _, who = init.build_root(spec, fds[2:], step)
    step.name = "rootfs"
    rootfs.enter(root)
    rootfs.leave_host()
    step.name = "namespaces"
    userns.enter(owner)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    mounts = os.open(b"mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=own)
    wire.send_packet(sockets.adopt(handing), who, (mounts,))
    os._exit(0)
