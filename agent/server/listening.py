"""Ports that may be taken: asked about at start-up, before anything is made, and when they are opened."""

from __future__ import annotations

import errno
import socket

from host.errors import InputError


def check_free(address: str, port: int, *, field: str) -> None:
    """See whether we could listen there; port 0 always passes.

    Raises:
        InputError: naming the port and the field of KubeletConfiguration.
    """
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just ended is no hindrance
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as exc:
            raise cannot_listen(exc, address, port, field=field) from exc


def cannot_listen(exc: OSError, address: str, port: int, *, field: str) -> InputError:
    """What a person should know about a port that cannot be opened."""
    if exc.errno == errno.EADDRINUSE:
        return InputError(f"{field} {port} is in use: is another kubelet running? stop it, or set {field}")
    return InputError(f"cannot listen on {address} port {port} ({field}): {exc.strerror or exc}")
