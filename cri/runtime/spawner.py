"""The process that forks supervisors: small, single-threaded, without gRPC, and nothing but that.

nodelet-cri must not fork itself, because it has threads and gRPC in it, and a fork of its size costs ten
times as much. One request on the socket it was given: {"folder", "spec"} with one descriptor, the connection
that the new supervisor answers on. It ends when nodelet-cri does; supervisors stay.
"""

from __future__ import annotations

import gc
import os
import signal
import socket

from cri.runtime import supervisor, wire
from host import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SOCKET = 3


def main(fd: int) -> None:
    """Serve the socket until its other end is closed."""
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.set_process_name(b"nodelet-spawner")
    os.umask(0o077)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)  # ignored ones would be inherited by every container
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.dup2(fd, _SOCKET, inheritable=False)
    syscalls.close_range(_SOCKET + 1)
    sock = socket.socket(fileno=_SOCKET)
    frames = wire.Frames()
    gc.collect()
    gc.freeze()
    while True:
        data, fds = wire.receive(sock)
        if not data:
            return
        for request, passed in frames.feed(data, fds):
            _spawn(sock, request, passed)


def _spawn(sock: socket.socket, request: dict[str, Any], fds: list[int]) -> None:
    """Fork; the child never returns. Children are reaped by the kernel (SIGCHLD is ignored)."""
    try:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            sock.close()
            supervisor.main(request["folder"], request["spec"], socket.socket(fileno=fds[0]))
    except OSError as exc:
        os.write(2, f"fork of a supervisor: {exc}\n".encode())
    finally:
        for fd in fds:
            os.close(fd)
