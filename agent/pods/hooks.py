"""Lifecycle hooks: one postStart or preStop handler, run once. Times are the caller's.

Source: pkg/kubelet/lifecycle/handlers.go (v1.37). tcpSocket is deprecated in the API and never ran anything.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Protocol

import aiohttp

from agent.api.structs import Container, HTTPGetAction, LifecycleHandler
from agent.pods.runtime import ExecResult, RuntimeFailure
from host.clocks import Clock

_HOOK_TIMEOUT = 30.0


class HookFailed(Exception):
    """The handler did not succeed; the text says how, and may hold the container's own output.

    Attributes:
        how: the text without that output, for events, which more people read than logs.
    """

    def __init__(self, how: str, *, output: str = "") -> None:
        super().__init__(f"{how}: {output}" if output else how)
        self.how = how


class ExecPort(Protocol):
    """Runs a command in a container."""

    async def exec_sync(self, container_id: str, command: Sequence[str], *, timeout: float) -> ExecResult: ...


async def run_hook(
    handler: LifecycleHandler,
    *,
    container: Container,
    container_id: str,
    pod_ip: str,
    runtime: ExecPort,
    clock: Clock,
) -> None:
    """Run the handler to its end. Raises HookFailed."""
    if handler.exec is not None:
        await _exec(runtime, container_id, handler.exec.command)
    elif handler.http_get is not None:
        await _http_get(handler.http_get, container, pod_ip)
    elif handler.sleep is not None:
        await clock.sleep(handler.sleep.seconds)


async def _exec(runtime: ExecPort, container_id: str, command: Sequence[str]) -> None:
    try:
        done = await runtime.exec_sync(container_id, command, timeout=0)
    except RuntimeFailure as exc:
        raise HookFailed(f"exec hook: {exc}") from exc
    if done.exit_code != 0:
        tail = (done.stderr or done.stdout)[-512:].decode(errors="replace")
        raise HookFailed(f"exec hook exited with {done.exit_code}", output=tail)


async def _http_get(action: HTTPGetAction, container: Container, pod_ip: str) -> None:
    host = action.host or pod_ip
    if not host:
        raise HookFailed("failed to find networking container: pod has no address")
    port = action.port
    if isinstance(port, str):
        named = next((p.container_port for p in container.ports if p.name == port), 0)
        port = named or (int(port) if port.isdecimal() else 0)
    if not port:
        raise HookFailed(f"couldn't find port: {action.port}")
    scheme = (action.scheme or "HTTP").lower()
    authority = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{authority}:{port}/{action.path.lstrip('/')}"
    headers = {header.name: header.value for header in action.http_headers}
    insecure = ssl.create_default_context()
    insecure.check_hostname = False
    insecure.verify_mode = ssl.CERT_NONE  # as kubelet: the pod's own certificate is nobody's to check
    try:
        timeout = aiohttp.ClientTimeout(total=_HOOK_TIMEOUT)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, headers=headers, ssl=insecure, allow_redirects=False) as answer,
        ):
            if answer.status >= 400:
                raise HookFailed(f"HTTP hook answered {answer.status}")
    except (TimeoutError, aiohttp.ClientError, OSError) as exc:
        raise HookFailed(f"HTTP hook: {exc}") from exc
