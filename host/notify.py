"""Telling systemd how we are, where it started us (sd_notify(3)); nothing happens anywhere else."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def send(message: str, *, address: str | None = None) -> None:
    """Send one datagram to the init system's socket; whoever does not listen to it is not worth a crash.

    Args:
        message: such as "READY=1".
        address: the socket, by default $NOTIFY_SOCKET; a leading @ is an abstract one.
    """
    address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
    if not address:
        return
    target = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender, suppress(OSError):
        sender.sendto(message.encode(), target)


def ready() -> None:
    """Everything a dependent service may rely on is there."""
    send("READY=1")


def stopping() -> None:
    """We were asked to end."""
    send("STOPPING=1")
