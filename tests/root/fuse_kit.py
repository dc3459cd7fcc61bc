"""A file server that can die: FUSE with the smallest of servers, spoken by hand over /dev/fuse.

Alive, it serves one empty directory. Dead, it still takes requests and answers none, so that who asks sleeps
in the kernel where SIGKILL does not reach: what an NFS server that went away does to a client. It is a
process of its own, because the end of whoever has the connection open is what wakes the sleepers.
Protocol: include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import os
import selectors
import struct
import subprocess
import sys
from pathlib import Path

_HEADER = struct.Struct("=IIQQIIII")
_OUT = struct.Struct("=IiQ")
_LOOKUP, _GETATTR, _INIT = 1, 3, 26
_ENOENT, _ENOSYS = 2, 38
_ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
_VERSION = struct.pack("=IIIIHHIIHH32x", 7, 31, 0, 0, 12, 9, 65536, 1, 16, 0)


class Server:
    """Mounted on a directory until `stop`, or until somebody unmounts it."""

    def __init__(self, point: Path) -> None:
        fd = mount(point)
        try:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(fd)],
                pass_fds=[fd],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        finally:
            os.close(fd)

    def die(self) -> None:
        """Answer nothing from now on."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"x")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == b"dead\n"

    def stop(self) -> None:
        """End the connection: whoever sleeps wakes with an error."""
        self._process.kill()
        self._process.communicate()


def mount(point: Path) -> int:
    """Mount on a directory; the descriptor to serve it by."""
    from host import syscalls  # not needed by the server's process

    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    syscalls.mount("server", str(point), "fuse", syscalls.MS_NOSUID | syscalls.MS_NODEV, options)
    return fd


def serve(fd: int) -> None:
    """The server's process; a byte on standard input makes it dead, the end of that ends it."""
    dead = False
    ready = selectors.DefaultSelector()
    ready.register(fd, selectors.EVENT_READ)
    ready.register(0, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            if key.fd == fd:
                _take(fd, dead)
            elif os.read(0, 1):
                dead = True
                print("dead", flush=True)
            else:
                return


def _take(fd: int, dead: bool) -> None:
    try:
        _, opcode, unique, *_ = _HEADER.unpack_from(os.read(fd, 1 << 17))
    except OSError:  # ENODEV: unmounted
        raise SystemExit from None
    body, error = b"", 0
    if opcode == _INIT:
        body = _VERSION
    elif dead:
        return
    elif opcode == _GETATTR:
        body = bytes(16) + _ATTR.pack(1, *[0] * 8, 0o40755, 2, *[0] * 3, 4096, 0)
    else:
        error = -_ENOENT if opcode == _LOOKUP else -_ENOSYS
    os.write(fd, _OUT.pack(_OUT.size + len(body), error, unique) + body)


if __name__ == "__main__":
    serve(int(sys.argv[1]) if sys.argv[1].isdecimal() else mount(Path(sys.argv[1])))
