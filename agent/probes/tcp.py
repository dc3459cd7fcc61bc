"""tcpSocket probes: a connection that opens is success; nothing is sent."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

from agent.probes.measure import SUCCESS, Measurement, Target, failure, resolve_port

if TYPE_CHECKING:
    from agent.api.structs import TCPSocketAction


def host_port(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def dial_error(exc: OSError, host: str, port: int) -> str:
    """The words of kubelet's events, for instance "dial tcp 10.0.0.1:80: connect: connection refused"."""
    if isinstance(exc, TimeoutError):
        return f"dial tcp {host_port(host, port)}: i/o timeout"
    if isinstance(exc, socket.gaierror):
        return f"dial tcp: lookup {host}: no such host"
    detail = os.strerror(exc.errno).lower() if exc.errno else str(exc)
    return f"dial tcp {host_port(host, port)}: connect: {detail}"


async def measure_tcp(action: TCPSocketAction, target: Target, *, timeout: float) -> Measurement:
    """Open one connection to the pod (or to the host the probe names) and close it.

    Raises:
        Unmeasurable: the port has no such name.
    """
    port = resolve_port(action.port, target.container)
    host = action.host or target.pod_ip
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port)
    except OSError as exc:
        return failure(dial_error(exc, host, port))
    writer.close()
    return SUCCESS
