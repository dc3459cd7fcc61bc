"""File changes as asyncio wake-ups: `async with Watcher() as w: w.add(path, mask); await w.wait(timeout)`.

Level, not edge: a wake-up says that something happened, the caller looks at the file itself. Events
themselves are read and thrown away, so a full kernel queue (IN_Q_OVERFLOW) loses nothing.

Source: inotify(7).
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from host import syscalls

IN_MODIFY = 0x2
IN_CLOSE_WRITE = 0x8
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_MOVE_SELF = 0x800

FILE = IN_MODIFY | IN_CLOSE_WRITE | IN_MOVE_SELF
"""The content of a file grew, its writer closed it, or it was renamed."""

FOLDER = IN_CREATE | IN_MOVED_TO | IN_DELETE | IN_CLOSE_WRITE
"""A folder got, lost or finished an entry."""


def inotify_open() -> int:
    """inotify_init1(2): a descriptor that is readable when something happened (non-blocking)."""
    return syscalls.call("inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK)


def inotify_watch(fd: int, path: str, mask: int) -> int:
    """inotify_add_watch(2): tell of the IN_* events of a file or folder; answers the watch's number."""
    return syscalls.call("inotify_add_watch", fd, os.fsencode(path), mask, subject=path)


class Watcher:
    """One inotify descriptor on the running event loop. Raises HostError when the kernel's limits are used up
    (fs.inotify.max_user_instances, max_user_watches)."""

    def __init__(self) -> None:
        self._fd = -1
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Watcher:
        self._fd = inotify_open()
        asyncio.get_running_loop().add_reader(self._fd, self._drain)
        return self

    async def __aexit__(self, *exc: object) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1

    def add(self, path: Path | str, mask: int) -> None:
        """Watch a file or folder as well. Raises NotFound."""
        inotify_watch(self._fd, str(path), mask)

    async def wait(self, timeout: float | None = None) -> bool:
        """Return at the next change, or False after `timeout` seconds. Changes since the last call count."""
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def _drain(self) -> None:
        try:
            while os.read(self._fd, 65536):
                self._changed.set()
        except BlockingIOError:
            self._changed.set()
