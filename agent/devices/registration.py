"""Where device plugins say that they are there: the socket <root>/device-plugins/kubelet.sock.

Plugins watch that folder. A new socket of this name tells them that the node's agent has started anew, and
that they have to register again.
"""

from __future__ import annotations

import logging
import re
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from host.unixsockets import PATH_LIMIT, clear
from proto.devices import plugin_pb2 as pb
from proto.devices import plugin_pb2_grpc as rpc

log = logging.getLogger(__name__)
SOCKET = "kubelet.sock"
VERSION = "v1beta1"
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_RESOURCE = re.compile(rf"(?P<domain>{_LABEL}(\.{_LABEL})*)/[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")


def obstacle(folder: Path) -> str:
    """Why no plugin can register below this folder; empty when they can."""
    path = folder / SOCKET
    if len(bytes(path)) <= PATH_LIMIT:
        return ""
    return f"{path} is longer than the {PATH_LIMIT} bytes a socket's path may have: shorten --root-dir"


def problem(request: pb.RegisterRequest) -> str:
    """What is wrong with a registration; empty when nothing is.

    Source: IsExtendedResourceName in pkg/apis/core/v1/helper (v1.37).
    """
    if request.version != VERSION:
        return (
            f"requested API version {request.version[:80]!r} is not supported by this node. "
            f"Supported version is {VERSION!r}"
        )
    name, endpoint = request.resource_name, request.endpoint
    shape = _RESOURCE.fullmatch(name)
    domain = shape["domain"] if shape else ""
    reserved = f".{domain}".endswith(".kubernetes.io") or domain.startswith("requests.")
    if not shape or reserved or len(domain) > 253:
        return (
            f"the ResourceName {name[:80]!r} is invalid: it must be a vendor's domain and a name, "
            "as in example.com/device"
        )
    if not endpoint or "/" in endpoint or "\0" in endpoint or endpoint in (".", "..", SOCKET):
        return f"the endpoint {endpoint[:80]!r} must be the name of a socket beside {SOCKET}"
    return ""


class _Registration(rpc.RegistrationServicer):
    def __init__(self, on_register: Callable[[pb.RegisterRequest], None]) -> None:
        self._on_register = on_register

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.Empty:
        words = problem(request)
        if words:
            log.warning("device plugin refused: %s", words)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, words)
        self._on_register(request)
        return pb.Empty()


@asynccontextmanager
async def serving(folder: Path, on_register: Callable[[pb.RegisterRequest], None]) -> AsyncIterator[None]:
    """Take registrations while inside. Raises InputError as `_clean` does."""
    path = _clean(folder)
    server = grpc.aio.server()
    rpc.add_RegistrationServicer_to_server(_Registration(on_register), server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


def _clean(folder: Path) -> Path:
    """Make the folder, and take sockets from before away; the path to listen at.

    Those of plugins go as well, as with kubelet: it is what some plugins wait for to start anew.

    Raises:
        InputError: another agent listens here.
    """
    path = folder / SOCKET
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    clear(path, fix="stop the other agent, or give this one its own --root-dir")
    for each in folder.iterdir():
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(each.lstat().st_mode):
                each.unlink()
    return path
