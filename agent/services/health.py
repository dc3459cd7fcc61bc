"""Answers on healthCheckNodePorts: load balancers ask each node whether it has endpoints of its own.

200 with at least one ready local endpoint, 503 without, with kube-proxy's JSON body and weight header
(k8s.io/kubernetes/pkg/proxy/healthcheck). HTTP/1.1, one request a connection, nothing of the request is used.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

_log = logging.getLogger(__name__)
_HEAD_LIMIT = 16 << 10
_PATIENCE = 5.0


@dataclass(frozen=True)
class Health:
    """What to answer for one Service: its key, and its number of ready local endpoints."""

    key: str
    local_endpoints: int


def answer(health: Health) -> bytes:
    """The whole HTTP response. Pure."""
    namespace, _, name = health.key.partition("/")
    body = json.dumps(
        {
            "service": {"namespace": namespace, "name": name},
            "localEndpoints": health.local_endpoints,
            "serviceProxyHealthy": True,
        }
    ).encode()
    status = "200 OK" if health.local_endpoints else "503 Service Unavailable"
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n"
        f"X-Load-Balancing-Endpoint-Weight: {health.local_endpoints}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


class HealthPorts:
    """The listening ports, one for each Service that has one.

    Args:
        host: address to listen on.
    """

    def __init__(self, *, host: str = "0.0.0.0") -> None:  # noqa: S104 - load balancers ask from outside
        self._host = host
        self._wanted: Mapping[int, Health] = {}
        self._servers: dict[int, asyncio.Server] = {}

    async def set(self, wanted: Mapping[int, Health]) -> None:
        """Listen on exactly these ports; a port that cannot be had is logged and tried again next time."""
        self._wanted = wanted
        for port in [port for port in self._servers if port not in wanted]:
            self._servers.pop(port).close()
        for port in wanted:
            if port not in self._servers:
                await self._open(port)

    async def _open(self, port: int) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(port, reader, writer)

        try:
            self._servers[port] = await asyncio.start_server(serve, self._host, port, limit=_HEAD_LIMIT)
        except OSError as exc:
            _log.warning("cannot listen on health check node port port=%d error=%s", port, exc)

    async def _serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            async with asyncio.timeout(_PATIENCE):
                await reader.readuntil(b"\r\n\r\n")
                health = self._wanted.get(port)
                if health is not None:
                    writer.write(answer(health))
                    await writer.drain()
        writer.close()

    async def close(self) -> None:
        """Stop listening."""
        await self.set({})
