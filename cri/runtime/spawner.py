"""The process that forks supervisors: small, single-threaded, without gRPC, and nothing but that.

nodelet-cri must not fork itself, because it has threads and gRPC in it, and a fork of its size costs ten
times as much. One request on the socket it was given: {"folder", "spec"} with one descriptor, the connection
that the new supervisor answers on. It ends when nodelet-cri does; supervisors stay.

One supervisor is forked ahead of its pod and waits (a fork and a new network namespace are a third of what a
sandbox takes). Pods that come faster than that get theirs when they ask.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket

from cri.runtime import supervisor, wire
from host import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_SOCKET = 3
_READY = b"r"
_QUIET_MS = 150
"""A spare is forked when nobody has asked for this long, so that it takes no time from a pod that starts."""


def main(fd: int) -> None:
    """Serve the socket until its other end is closed."""
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.set_process_name(b"nodelet-spawner")
    os.umask(0o077)
    # Ignored ones would be inherited by every container. Those that the interpreter itself ignores stay so: a
    # write to a connection whose other end has gone must be an error, not the end of a supervisor.
    kept = {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}
    for number in signal.valid_signals() - kept:
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.dup2(fd, _SOCKET, inheritable=False)
    syscalls.close_range(_SOCKET + 1)
    sock = socket.socket(fileno=_SOCKET)
    frames = wire.Frames()
    gc.collect()
    gc.freeze()
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    spare: socket.socket | None = None
    while True:
        if spare is None and not poll.poll(_QUIET_MS):
            spare = _fork_spare(sock)
        data, fds = wire.receive(sock)
        if not data:
            return
        for request, passed in frames.feed(data, fds):
            if not (spare is not None and _hand_over(spare, request, passed)):
                _fork_supervisor(sock, spare, request, passed)
            for passed_fd in passed:
                os.close(passed_fd)
            if spare is not None and not request["spec"]["host_network"]:
                spare.close()  # used, or of no use
                spare = None


def _fork_supervisor(
    sock: socket.socket, spare: socket.socket | None, request: dict[str, Any], fds: list[int]
) -> None:
    """Fork; the child never returns. Children are reaped by the kernel (SIGCHLD is ignored)."""
    try:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            sock.close()
            if spare is not None:
                spare.close()
            supervisor.main(request["folder"], request["spec"], socket.socket(fileno=fds[0]))
    except OSError as exc:
        os.write(2, f"fork of a supervisor: {exc}\n".encode())


def _fork_spare(sock: socket.socket) -> socket.socket | None:
    """Fork the next pod's supervisor before it is asked for; its own network namespace is ready, too.

    Returns:
        the socket to hand it its pod on; None where it could not be forked.
    """
    ours, theirs = socket.socketpair()
    try:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            sock.close()
            ours.close()
            _be_spare(theirs)
    except OSError as exc:
        os.write(2, f"fork of a spare supervisor: {exc}\n".encode())
        ours.close()
        return None
    finally:
        theirs.close()
    return ours


def _be_spare(sock: socket.socket) -> NoReturn:
    """Wait for a pod; end when the spawner does."""
    try:
        syscalls.set_process_name(b"nodelet-spare")
        syscalls.unshare(syscalls.CLONE_NEWNET)
        sock.send(_READY)
        frames = wire.Frames()
        while True:
            data, fds = wire.receive(sock)
            if not data:
                os._exit(0)
            for request, passed in frames.feed(data, fds):
                sock.close()
                first = socket.socket(fileno=passed[0])
                supervisor.main(request["folder"], request["spec"], first, has_network=True)
    finally:
        os._exit(1)


def _hand_over(spare: socket.socket, request: dict[str, Any], fds: list[int]) -> bool:
    """Give a pod to the spare; False where it is not ready, dead, or not what the pod needs."""
    if request["spec"]["host_network"]:
        return False
    try:
        if spare.recv(1, socket.MSG_DONTWAIT) != _READY:
            return False
        wire.send_blocking(spare, request, (fds[0],))
    except OSError:
        return False
    return True
