"""Reading and following a container's log file; `logs` does the decoding.

Following sleeps on inotify: it wakes when the file grows, when a rotation renames it, or once a second to see
whether the container still runs. Files that rotations put in place are opened as they come, by a task of its
own, and read one after the other to their ends: however slowly the client takes its lines, none is lost as
long as not more than `KEPT` rotations are ahead of it. Files are opened without following any symbolic link:
a pod that can write below /var/log must not make us read /etc/shadow.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.server.logs import Decoder, LogOptions, tail_offset
from host import inotify
from host.errors import HostError, NotFound
from host.syscalls import AT_FDCWD, RESOLVE_NO_SYMLINKS, openat2

log = logging.getLogger(__name__)
CHUNK = 128 << 10
KEPT = 8
"""Files a follower may be behind; a deleted one that is still open takes room on the disk."""
RUNNING_CHECK = 1.0
"""Seconds between two looks at whether the container still runs; a look is a dictionary access."""

Write = Callable[[bytes], Awaitable[None]]


def open_log(path: Path) -> int:
    """A descriptor of a log file. Raises HostError: NotFound, or anything for what is not a regular file."""
    fd = openat2(
        AT_FDCWD, str(path), flags=os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, resolve=RESOLVE_NO_SYMLINKS
    )
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotFound(2, f"log {path}", "not a regular file")
    return fd


class LogReader:
    """Streams one log file to `write`.

    Args:
        path: the current log file.
        running: whether the container runs; a follower ends when it does not and the file is read.
    """

    def __init__(self, path: Path, *, options: LogOptions, running: Callable[[], bool], write: Write) -> None:
        self._path = path
        self._options = options
        self._running = running
        self._write = write
        self._decoder = Decoder(options)
        self._fd = -1
        self._next: collections.deque[int] = collections.deque()
        """Descriptors of the files after the one being read, oldest first."""
        self._behind = False
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Stream until the end, the limit, or (following) the container's end. Raises HostError at
        opening."""
        self._fd = open_log(self._path)
        try:
            if self._options.tail is not None:
                size = os.fstat(self._fd).st_size
                start = await asyncio.to_thread(tail_offset, size, self._options.tail, self._read_at)
                os.lseek(self._fd, start, os.SEEK_SET)
            if self._options.follow:
                await self._follow()
            else:
                await self._copy()
        finally:
            for fd in (self._fd, *self._next):
                os.close(fd)

    def _read_at(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)

    async def _copy(self) -> None:
        """Everything up to the present end of the open file."""
        while not self._decoder.done:
            data = os.read(self._fd, CHUNK)
            if not data:
                return
            text = self._decoder.feed(data)
            if text:
                await self._write(text)
            else:
                await asyncio.sleep(0)

    async def _follow(self) -> None:
        async with inotify.Watcher() as watcher:
            watcher.add(self._path.parent, inotify.FOLDER)
            self._watch_file(watcher)
            keeping_up = asyncio.create_task(self._keep_up(watcher), name=f"follow {self._path}")
            try:
                await self._read_on(watcher)
            finally:
                keeping_up.cancel()
                await asyncio.gather(keeping_up, return_exceptions=True)

    async def _read_on(self, watcher: inotify.Watcher) -> None:
        while True:
            # Both are asked before reading: what was written before the answer is then read for certain.
            running, moved = self._running(), self._look(watcher)
            self._news.clear()
            await self._copy()
            if self._decoder.done or (not running and not moved):
                return
            if moved:
                os.close(self._fd)
                self._fd = self._next.popleft()
                self._decoder.end()
                continue
            await self._news.wait()

    async def _keep_up(self, watcher: inotify.Watcher) -> None:
        """Open new files while the reader may be waiting for its client."""
        while True:
            await watcher.wait(RUNNING_CHECK)
            with contextlib.suppress(HostError):  # which the reader meets and tells
                self._look(watcher)
            self._news.set()

    def _look(self, watcher: inotify.Watcher) -> bool:
        """Open what a rotation has put in place of the newest file; whether any is to be read next."""
        if self._replaced(self._next[-1] if self._next else self._fd):
            if len(self._next) < KEPT:
                self._open_next(watcher)
            elif not self._behind:
                self._behind = True
                log.warning("a follower is too far behind, lines are left out path=%s", self._path)
        return bool(self._next)

    def _open_next(self, watcher: inotify.Watcher) -> None:
        try:
            self._next.append(open_log(self._path))
        except NotFound:
            return
        self._watch_file(watcher)

    def _watch_file(self, watcher: inotify.Watcher) -> None:
        newest = self._next[-1] if self._next else self._fd
        try:
            watcher.add(f"/proc/self/fd/{newest}", inotify.FILE)
        except HostError:
            watcher.add(self._path, inotify.FILE)

    def _replaced(self, newest: int) -> bool:
        """Whether the path names another file than the newest one we have open (and that file exists)."""
        try:
            there, ours = os.stat(self._path, follow_symlinks=False), os.fstat(newest)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)
