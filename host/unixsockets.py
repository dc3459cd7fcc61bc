"""The path of a unix socket we listen on: a live listener's is respected, a dead one's is cleared away."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from host import holders
from host.errors import InputError

PATH_LIMIT = 107
"""Bytes a path may have: sun_path of sockaddr_un less its NUL, see unix(7)."""


def check_free(path: Path, *, fix: str) -> None:
    """See that nobody listens on a socket path; nothing is changed.

    Args:
        fix: what a person may set instead: "set --listen".

    Raises:
        InputError: somebody does, or there is something that is no socket.
    """
    if not path.exists():
        return
    if not path.is_socket():
        raise InputError(f"{path} exists and is not a socket: remove it or {fix}")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError:  # a listener that accepts nobody, because it is stopped, has its path all the same
            raise InputError(f"a program that does not answer listens on {path}: stop it or {fix}") from None
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    raise InputError(f"another program listens on {path}, {holders.processes([pid])}: stop it or {fix}")


def clear(path: Path, *, fix: str) -> None:
    """Unlink a socket that nobody listens on. Raises InputError as `check_free` does."""
    check_free(path, fix=fix)
    path.unlink(missing_ok=True)


def listen(path: Path, *, fix: str, backlog: int = 16) -> socket.socket:
    """A listening socket at this path that only its owner may connect to; its folder must exist.

    Raises:
        InputError: the path is taken, too long, or cannot be made.
    """
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise InputError(f"{path} is longer than the {PATH_LIMIT} bytes a socket's path may have: {fix}")
    clear(path, fix=fix)
    made = socket.socket(socket.AF_UNIX)
    try:
        # The socket's own mode is what bind gives its path: not for a moment can anybody else connect.
        os.fchmod(made.fileno(), 0o600)
        made.bind(str(path))
        made.listen(backlog)
    except OSError as exc:
        made.close()
        raise InputError(f"cannot listen on {path}: {exc.strerror or exc}: {fix}") from exc
    return made
