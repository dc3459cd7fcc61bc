"""The process that forks supervisors: small, single-threaded, without gRPC, and nothing but that.

nodelet-cri must not fork itself, because it has threads and gRPC in it, and a fork of its size costs ten
times as much. It writes one packet to rehearse with (see `rehearsal`), then one for each pod, {"folder",
"spec"} with one descriptor, the connection that the new supervisor answers on. The packet is received by the
child that becomes the supervisor, never by the spawner: a page that the spawner writes to after a fork is one
that its child has alone from then on, so the less it does, the smaller is every pod. It ends when nodelet-cri
does; supervisors stay.

One supervisor is forked ahead of its pod and waits for the packet (a fork and a new network namespace are a
third of what a sandbox takes). Pods that come faster than that get theirs when they ask.
"""

from __future__ import annotations

import _signal as signal
import gc
import os
import select

from cri.runtime import sockets, supervisor, wire
from cri.runtime.rehearsal import rehearse
from host import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from cri.runtime.sockets import Socket

_SOCKET = 3
_QUIET_MS = 150
"""A spare is forked when nobody has asked for this long, so that it takes no time from a pod that starts."""


def main(fd: int) -> None:
    """Fork supervisors for the packets of a SOCK_SEQPACKET socket until its other end is closed."""
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
    _rehearse()
    syscalls.close_range(_SOCKET + 1)
    gc.collect()
    gc.freeze()
    _serve()


def _serve() -> None:
    """Fork ahead when it is quiet, else when a packet is there; one child waits for a packet at a time."""
    packets, child = select.poll(), select.poll()
    packets.register(_SOCKET, select.POLLIN)
    while True:
        ready = packets.poll(_QUIET_MS)
        if ready and ready[0][1] & select.POLLHUP:
            return
        try:
            taken = _fork(ahead=not ready)
        except OSError as exc:
            os.write(2, f"fork of a supervisor: {exc}\n".encode())
            if ready:
                _drop_packet()
            continue
        child.register(taken, 0)
        child.register(_SOCKET, 0)
        gone = [fd for fd, _ in child.poll()]
        child.unregister(taken)
        os.close(taken)
        if _SOCKET in gone:
            return


def _rehearse() -> None:
    """With the container in the first packet; without success a pod is only larger than it could be."""
    try:
        data, _ = sockets.receive(_socket())
        if data:
            rehearse(wire.decode(data))
    except (OSError, KeyError) as exc:
        os.write(2, f"rehearsal: {exc!r}\n".encode())


def _socket() -> Socket:
    return sockets.adopt(os.dup(_SOCKET))


def _drop_packet() -> None:
    """A pod that no process could be had for; its connection, closed here, tells the client."""
    for fd in sockets.receive(_socket())[1]:
        os.close(fd)


def _fork(*, ahead: bool) -> int:
    """Fork a child that becomes the supervisor of the next packet. Children are reaped by the kernel.

    Args:
        ahead: there is no packet yet, and time to make a network namespace.

    Returns:
        a pipe that is closed at its other end as soon as the child has its packet, or is dead.
    """
    taken, waiting = os.pipe2(os.O_CLOEXEC)
    try:
        if os.fork() == 0:
            os.close(taken)
            _be_child(waiting, ahead=ahead)
    except OSError:
        os.close(taken)
        raise
    finally:
        os.close(waiting)
    return taken


def _be_child(waiting: int, *, ahead: bool) -> NoReturn:
    """Wait for a pod and become its supervisor; end when the spawner's client does."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        host_network = -1
        if ahead:
            syscalls.set_process_name(b"nodelet-spare")
            host_network = os.open(b"/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            syscalls.unshare(syscalls.CLONE_NEWNET)
        sock = sockets.adopt(_SOCKET)
        data, fds = sockets.receive(sock)
        sock.close()
        os.close(waiting)
        if data:
            _supervise(wire.decode(data), sockets.adopt(fds[0]), host_network)
    finally:
        os._exit(1)


def _supervise(request: dict[str, Any], first: Socket, host_network: int) -> NoReturn:
    """Never returns. `host_network`: descriptor of the node's network namespace, -1 when still in it."""
    spec = request["spec"]
    if host_network >= 0 and spec["host_network"]:
        syscalls.setns(host_network, syscalls.CLONE_NEWNET)
    if host_network >= 0:
        os.close(host_network)
    has_network = host_network >= 0 and not spec["host_network"]
    supervisor.main(request["folder"], spec, first, has_network=has_network)
