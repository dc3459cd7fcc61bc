"""Unix sockets for what is forked once a pod: made by the C module that `socket` wraps.

`socket` and `signal` of the standard library make a member of an enum of every number that passes through
them. That touches some 300 KiB of the interpreter's objects, and each supervisor has a copy of its own of
every page it touches. So what supervisors run uses `_socket` and `_signal`, whose numbers are plain.
"""

from __future__ import annotations

import _socket
import os
import struct
from _socket import SOCK_SEQPACKET as PACKETS
from _socket import SOCK_STREAM as STREAM
from _socket import socket as Socket

__all__ = ["PACKETS", "STREAM", "Socket", "accept", "adopt", "listen", "pair", "receive", "send"]

MAX_FDS = 8
_BACKLOG = 128
"""As many daemons may come and go while this process is stopped."""
_CHUNK = 1 << 16
_INT = struct.Struct("i")
_UCRED = struct.Struct("3i")
_SPACE = _socket.CMSG_SPACE(MAX_FDS * _INT.size)


def adopt(fd: int) -> Socket:
    """The socket behind a descriptor, which is taken over."""
    return Socket(fileno=fd)


def pair(kind: int = STREAM) -> tuple[Socket, Socket]:
    """Two connected sockets, close-on-exec."""
    return _socket.socketpair(_socket.AF_UNIX, kind, 0)


def listen(name: bytes, folder: bytes) -> Socket:
    """A listening, non-blocking stream socket of mode 0600.

    It is bound by way of a descriptor of the folder: the path may be longer than a socket address.
    """
    sock = Socket(_socket.AF_UNIX, STREAM, 0)
    dirfd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.bind(b"/proc/self/fd/%d/%s" % (dirfd, name))
        os.chmod(name, 0o600, dir_fd=dirfd)
    finally:
        os.close(dirfd)
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock


def accept(listener: Socket) -> Socket | None:
    """The next connection; None where there is none, or where it is not root's."""
    try:
        fd, _ = listener._accept()  # type: ignore[attr-defined]  # what socket.accept is made of
    except OSError:
        return None
    sock = adopt(fd)
    credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)
    if _UCRED.unpack(credentials)[1] != 0:
        sock.close()
        return None
    return sock


def send(sock: Socket, data: bytes, fds: tuple[int, ...] = ()) -> int:
    """One sendmsg, with descriptors (SCM_RIGHTS) where there are any; how many bytes it took."""
    if not fds:
        return sock.send(data)
    rights = b"".join(_INT.pack(fd) for fd in fds)
    return sock.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])


def receive(sock: Socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """One recvmsg: bytes (empty at the end of the stream) and descriptors, all close-on-exec."""
    data, control, _, _ = sock.recvmsg(_CHUNK, _SPACE, _socket.MSG_CMSG_CLOEXEC | flags)
    fds = []
    for level, kind, rights in control:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds += [_INT.unpack_from(rights, at)[0] for at in range(0, len(rights), _INT.size)]
    return data, fds
