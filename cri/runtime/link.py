"""nodelet-cri's side of the connection to one supervisor: requests, answers and events, under asyncio."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cri.runtime import wire
from cri.runtime.errors import StartFailed
from host.errors import from_errno, from_oserror

_ANSWER_LIMIT_S = 120.0


class Link:
    """One stream socket; every request has one answer, in any order."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        name: str,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[], None],
    ) -> None:
        """Takes the socket over.

        Args:
            sock: connected to the supervisor.
            name: whose supervisor it is, for messages.
            on_event: called with each event.
            on_lost: called once, when the supervisor's end is closed.
        """
        sock.setblocking(False)
        self._name = name
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._on_event, self._on_lost = on_event, on_lost
        self._frames = wire.Frames()
        self._waiting: dict[int, asyncio.Future[tuple[Any, list[int]]]] = {}
        self._next = 0
        self._queue: list[bytes] = []
        self.ended = asyncio.Event()
        """Set when the connection is gone."""
        self._loop.add_reader(sock.fileno(), self._readable)

    def expect(self) -> asyncio.Future[tuple[Any, list[int]]]:
        """The answer to the next request number, without sending one (a new supervisor answers number 0)."""
        future: asyncio.Future[tuple[Any, list[int]]] = self._loop.create_future()
        self._waiting[self._next] = future
        self._next += 1
        return future

    async def request(self, op: str, **fields: Any) -> Any:
        """Ask, and wait for the answer's value; descriptors in it are closed.

        Raises:
            NotFound: the supervisor is gone.
            StartFailed: the answer names a step.
            HostError: any other refusal.
        """
        value, fds = await self.request_with_fds(op, **fields)
        for fd in fds:
            os.close(fd)
        return value

    async def request_with_fds(self, op: str, **fields: Any) -> tuple[Any, list[int]]:
        """The same, with the descriptors of the answer, which are the caller's."""
        number = self._next
        future = self.expect()
        try:
            self._send(wire.frame({"id": number, "op": op, **fields}))
            async with asyncio.timeout(_ANSWER_LIMIT_S):
                return await future
        except TimeoutError as exc:
            raise from_errno(errno.ETIMEDOUT, f"supervisor of {self._name} does not answer {op!r}") from exc
        finally:
            self._waiting.pop(number, None)

    def _send(self, data: bytes) -> None:
        if self.ended.is_set():
            raise from_errno(errno.ESRCH, "the sandbox's supervisor is gone")
        self._queue.append(data)
        if len(self._queue) == 1:
            self._writable()

    def _writable(self) -> None:
        while self._queue:
            try:
                sent = self._sock.send(self._queue[0])
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._writable)
                return
            except OSError:
                self.close()
                return
            if sent < len(self._queue[0]):
                self._queue[0] = self._queue[0][sent:]
            else:
                del self._queue[0]
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        messages = wire.receive_messages(self._sock, self._frames)
        if messages is None:
            self.close()
            return
        for value, passed in messages:
            self._message(value, passed)

    def _message(self, value: Any, fds: list[int]) -> None:
        if "event" in value:
            self._on_event(value)
            return
        future = self._waiting.pop(value.get("id", -1), None)
        if future is None or future.done():
            for fd in fds:
                os.close(fd)
        elif "errno" in value:
            future.set_exception(_error(value))
        else:
            future.set_result((value["ok"], fds))

    def close(self) -> None:
        """Hang up; whoever waits for an answer is told that the supervisor is gone."""
        if self.ended.is_set():
            return
        self.ended.set()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._frames.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(from_errno(errno.ESRCH, "the sandbox's supervisor is gone"))
        self._waiting.clear()
        self._on_lost()


def _error(value: dict[str, Any]) -> Exception:
    if value.get("step"):
        return StartFailed(value["errno"], value["message"], step=value["step"])
    return from_errno(value["errno"], value["message"])


def connect(folder: Path) -> socket.socket:
    """Connect to the supervisor of a sandbox's folder.

    Raises:
        NotFound: no folder or no socket.
        Busy: it has not answered many before us (it is stopped): never waited for here.
        HostError: nobody listens (ECONNREFUSED).
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    dirfd = -1
    try:
        dirfd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        sock.connect(f"/proc/self/fd/{dirfd}/sock")
    except OSError as exc:
        sock.close()
        raise from_oserror(exc, f"connect to the supervisor in {folder}") from exc
    finally:
        if dirfd >= 0:
            with suppress(OSError):
                os.close(dirfd)
    return sock
