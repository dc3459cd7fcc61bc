"""`nodelet-cni --serve`: does the work of executed plugins in one process that has everything loaded.

See cni.handover for why and for the protocol. Commands are done side by side, those of one attachment one
after the other: a runtime that gives up ends its plugin, not the work here, and sends DEL next.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cni import main
from cni.handover import MAX_INPUT_BYTES, READY
from host import notify, unixsockets

log = logging.getLogger(__name__)
_THREADS = 32
_SEND_SECONDS = 10.0
_MAX_REQUEST_BYTES = MAX_INPUT_BYTES + (1 << 20)
_NAMESPACES = ("net", "mnt")


class Service:
    """Listens at a path until it is stopped.

    Args:
        path: of the unix socket, mode 0600; its folder is made.

    Raises:
        InputError: somebody listens there, or nobody can.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._listener = unixsockets.listen(path, fix="set --socket", backlog=128)
        self._listener.setblocking(False)
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._locks = _Locks()

    def run(self) -> None:
        """Serve until one of the signals of `stop_at`; what has been taken is done before this returns."""
        with self._listener, self._woken, self._waker:
            with ThreadPoolExecutor(_THREADS, thread_name_prefix="cni") as threads:
                notify.ready()
                log.info("serving path=%s", self._path)
                while self._woken not in select.select([self._listener, self._woken], [], [])[0]:
                    with contextlib.suppress(BlockingIOError, ConnectionError):  # it has gone again
                        connection, _ = self._listener.accept()
                        threads.submit(self._serve, connection)
                notify.stopping()
            self._path.unlink(missing_ok=True)

    def stop_at(self, *signals: int) -> None:
        """Let signals stop this, whichever thread the kernel picks for them. From the main thread."""
        for number in signals:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno())

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(_SEND_SECONDS)
                if _lives_elsewhere(_peer(connection)):
                    return
                connection.sendall(READY)
                request = _received(connection)
                if request is not None:
                    connection.sendall(self._done(request))
            except OSError as exc:
                log.debug("a caller has gone: %s", exc)
            except Exception:
                log.exception("a command was not answered")

    def _done(self, request: bytes) -> bytes:
        """The answer to one command."""
        head, _, stdin = request.partition(b"\0\0")
        environment = dict(part.partition("=")[::2] for part in os.fsdecode(head).split("\0"))
        attachment = (environment.get("CNI_CONTAINERID", ""), environment.get("CNI_IFNAME", ""))
        with self._locks.held(attachment):
            status, output = main.run(environment, stdin)
        printed = json.dumps(output).encode() + b"\n" if output else b""
        return bytes([status]) + printed + b"\0"


class _Locks:
    """One lock for each attachment that has a command."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[tuple[str, str], tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def held(self, attachment: tuple[str, str]) -> Iterator[None]:
        with self._guard:
            lock, users = self._held.get(attachment, (threading.Lock(), 0))
            self._held[attachment] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._held.pop(attachment)
                if users > 1:
                    self._held[attachment] = lock, users - 1


def serve(path: Path) -> None:
    """Run a service until SIGTERM or SIGINT. Raises InputError as Service does."""
    service = Service(path)
    service.stop_at(signal.SIGTERM, signal.SIGINT)
    service.run()


def _peer(connection: socket.socket) -> int:
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


def _lives_elsewhere(pid: int) -> bool:
    """Whether a process sees other links or other files: its paths and its bridge are not ours then."""
    theirs, ours = f"/proc/{pid}/ns", "/proc/self/ns"
    return not all(os.path.samefile(f"{theirs}/{name}", f"{ours}/{name}") for name in _NAMESPACES)


def _received(connection: socket.socket) -> bytes | None:
    """A whole request; None when the caller ended first, or says more than any caller has to say."""
    found = bytearray()
    while piece := connection.recv(1 << 16):
        found += piece
        if len(found) > _MAX_REQUEST_BYTES:
            return None
    return bytes(found) if b"\0\0" in found else None
