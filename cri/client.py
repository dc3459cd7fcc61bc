"""A terminal's way to the running daemon: one CRI call or a few, with errors that say what to do.

Not for the agent, which has its own asynchronous client.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from cri.images.errors import ImageError
from host.errors import InputError

SOCKET = "unix:///run/nodelet/cri.sock"
QUICK_SECONDS = 30.0


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one line and status 2."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def ask(endpoint: str, work: Callable[[Any, Any, Any], None]) -> None:
    """Call `work(image stub, runtime stub, messages)` on a connection to the daemon.

    Raises:
        InputError: no daemon answers there.
        ImageError: it refused; the text is its own.
    """
    import grpc

    from proto.cri import runtime_pb2, runtime_pb2_grpc

    with grpc.insecure_channel(endpoint) as channel:
        try:
            work(
                runtime_pb2_grpc.ImageServiceStub(channel),
                runtime_pb2_grpc.RuntimeServiceStub(channel),
                runtime_pb2,
            )
        except grpc.RpcError as exc:
            if exc.code() == grpc.StatusCode.UNAVAILABLE and "connect" in exc.details():
                raise InputError(
                    f"no daemon answers at {endpoint}: start nodelet-cri, or set --endpoint"
                ) from exc
            raise ImageError(exc.details()) from exc


def shown(text: str) -> str:
    """Words of strangers with control characters escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
