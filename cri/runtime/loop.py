"""One thread, one poll(2), callbacks: the loop of the spawner and of every supervisor."""

from __future__ import annotations

import _signal as signal
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_FAILURES = 3
IN, OUT = select.POLLIN, select.POLLOUT


class Loop:
    """Calls back when descriptors are ready and when children have ended."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._alarms: dict[Callable[[], None], float] = {}
        self._running = True

    def watch(self, fd: int, callback: Callable[[int], None], events: int = IN) -> None:
        """Call back with the ready events (POLLHUP and POLLERR always count); again to change them."""
        self._callbacks[fd] = callback
        self._poll.register(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching; call before the descriptor is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def alarm(self, callback: Callable[[], None], seconds: float | None) -> None:
        """Call back once after this time; again to change it, None to call it off."""
        if seconds is None:
            self._alarms.pop(callback, None)
        else:
            self._alarms[callback] = time.monotonic() + seconds

    def _ring(self) -> None:
        now = time.monotonic()
        for callback in [found for found, when in self._alarms.items() if when <= now]:
            del self._alarms[callback]
            callback()

    def _patience(self) -> float | None:
        """Milliseconds until the next alarm; None without one."""
        if not self._alarms:
            return None
        return max(0.0, 1000 * (min(self._alarms.values()) - time.monotonic())) + 1

    def watch_children(self, callback: Callable[[int, int], None]) -> None:
        """Call back with (pid, wait status) of every child that ends, orphans of a subreaper included."""
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, _nothing)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)

        def woken(_: int) -> None:
            _empty(read)
            reap(callback)

        self.watch(read, woken)

    def run(self) -> None:
        """Until `stop`. A callback that raises is reported and called again: one bad message must not take
        the whole pod down. A descriptor whose callback raises three times in a row is watched no longer.
        """
        failures: dict[int, int] = {}
        while self._running:
            for fd, events in self._poll.poll(self._patience()):
                callback = self._callbacks.get(fd)
                if callback is None:
                    continue
                try:
                    callback(events)
                    failures.pop(fd, None)
                except Exception:
                    sys.excepthook(*sys.exc_info())
                    failures[fd] = failures.get(fd, 0) + 1
                    if failures[fd] >= _MAX_FAILURES:
                        self.forget(fd)
            if self._alarms:
                self._ring()

    def stop(self) -> None:
        """Return from `run` after this round."""
        self._running = False


def _nothing(_number: int, _frame: object) -> None:
    """A handler must exist for the wake-up descriptor to be written."""


def _empty(pipe: int) -> None:
    try:
        os.read(pipe, 4096)
    except BlockingIOError:
        return


def reap(callback: Callable[[int, int], None]) -> None:
    """Every child that has ended by now."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        callback(pid, status)
