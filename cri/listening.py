"""The path of the CRI socket: a live listener's is respected, a dead one's is cleared away."""

from __future__ import annotations

import socket
from pathlib import Path

from host.errors import InputError


def check_free(path: Path) -> None:
    """See that nobody listens on a socket path; nothing is changed.

    Raises:
        InputError: somebody does, or there is something that is no socket.
    """
    if not path.exists():
        return
    if not path.is_socket():
        raise InputError(f"{path} exists and is not a socket: remove it or set --listen")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise InputError(f"another program listens on {path}: stop it or set --listen")


def clear(path: Path) -> None:
    """Unlink a socket that nobody listens on. Raises InputError as `check_free` does."""
    check_free(path)
    path.unlink(missing_ok=True)
