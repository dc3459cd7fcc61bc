"""The socket a runtime sends a terminal's master to (`--console-socket`, runc's docs/terminals.md)."""

from __future__ import annotations

import errno
import os

from cri.runtime import sockets
from host.errors import from_errno


class Console:
    """Listens in the bundle, the runtime's working directory.

    It is found by its name alone, because the whole path may be longer than a socket address.
    """

    def __init__(self, folder: bytes, name: bytes) -> None:
        """Listen.

        Raises:
            OSError: the folder is missing or full.
        """
        self.name = name
        self._path = folder + b"/" + name
        self._sock = sockets.listen(name, folder)

    def receive(self) -> int:
        """The master, non-blocking; the runtime has sent it before it ended.

        Raises:
            HostError: it has sent none.
        """
        connection = sockets.accept(self._sock)
        fds: list[int] = []
        if connection is not None:
            connection.setblocking(False)
            _, fds = sockets.receive(connection)
            connection.close()
        for fd in fds[1:]:
            os.close(fd)
        if not fds:
            raise from_errno(errno.ENOTTY, "OCI runtime sent no terminal")
        os.set_blocking(fds[0], False)
        return fds[0]

    def close(self) -> None:
        """Once, whether anything came or not."""
        self._sock.close()
        os.unlink(self._path)
