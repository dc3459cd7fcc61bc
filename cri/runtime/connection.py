"""A supervisor's side of one connection from nodelet-cri: requests in, answers out, never blocking."""

from __future__ import annotations

import errno
import os

from cri.runtime import sockets, wire
from cri.runtime.loop import IN, OUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cri.runtime.loop import Loop
    from cri.runtime.sockets import Socket

_MAX_QUEUE = 16 << 20


class Answer:
    """The one reply a request gets, now or later."""

    def __init__(self, connection: Connection, request: int) -> None:
        self.connection = connection
        self._request = request

    def ok(self, value: Any = None, fds: tuple[int, ...] = ()) -> None:
        """Done. Descriptors are passed on and closed here."""
        self.connection.send({"id": self._request, "ok": value}, fds)

    def fail(self, code: int, message: str, step: str = "") -> None:
        """Not done: an errno value, words for people, and the step for `StartFailed`."""
        self.connection.send({"id": self._request, "errno": code, "message": message, "step": step})


class Connection:
    """Framed messages over one non-blocking stream socket."""

    def __init__(
        self,
        loop: Loop,
        sock: Socket,
        *,
        on_request: Callable[[dict[str, Any], Answer], None],
        on_close: Callable[[Connection], None],
    ) -> None:
        self._loop, self._sock = loop, sock
        self._on_request, self._on_close = on_request, on_close
        self._frames = wire.Frames()
        self._queue: list[tuple[bytes, tuple[int, ...]]] = []
        self._queued = 0
        sock.setblocking(False)
        loop.watch(sock.fileno(), self._ready)

    def send(self, value: Any, fds: tuple[int, ...] = ()) -> None:
        """Queue and send as far as the socket takes it; a peer that never reads is cut off."""
        if self._sock.fileno() < 0:
            _close(fds)
            return
        data = wire.frame(value, len(fds))
        self._queue.append((data, fds))
        self._queued += len(data)
        self._drain()
        if self._queued > _MAX_QUEUE:
            self.close()

    def _drain(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            try:
                sent = sockets.send(self._sock, data, fds)
            except BlockingIOError:
                self._loop.watch(self._sock.fileno(), self._ready, IN | OUT)
                return
            except OSError:
                self.close()
                return
            _close(fds)
            self._queued -= sent
            if sent < len(data):
                self._queue[0] = (data[sent:], ())
            else:
                del self._queue[0]
        self._loop.watch(self._sock.fileno(), self._ready, IN)

    def flush(self) -> None:
        """Send what is queued, waiting for the peer at most a second."""
        if self._sock.fileno() < 0:
            return
        self._sock.settimeout(1.0)
        self._drain()

    def _ready(self, events: int) -> None:
        if events & OUT:
            self._drain()
        if not events & ~OUT or self._sock.fileno() < 0:
            return
        messages = wire.receive_messages(self._sock, self._frames)
        if messages is None:
            self.close()
            return
        for value, fds in messages:
            _close(tuple(fds))
            self._request(value)

    def _request(self, value: Any) -> None:
        if not isinstance(value, dict) or not isinstance(value.get("id"), int):
            self.close()
            return
        answer = Answer(self, value["id"])
        try:
            self._on_request(value, answer)
        except OSError as exc:
            answer.fail(exc.errno or errno.EIO, str(exc))
        except (KeyError, TypeError, ValueError) as exc:
            answer.fail(errno.EINVAL, f"bad request {value.get('op')!r}: {exc!r}")

    def close(self) -> None:
        """Hang up; once."""
        if self._sock.fileno() < 0:
            return
        self._loop.forget(self._sock.fileno())
        self._sock.close()
        self._frames.close()
        for _, fds in self._queue:
            _close(fds)
        self._queue.clear()
        self._on_close(self)


def _close(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)
