"""Reading and following a container's log file; `logs` does the decoding.

Following sleeps on inotify: it wakes when the file grows, when a rotation renames it (the new file is opened
once it exists and the old one has been read to its end, so no line is lost), or once a second to see whether
the container still runs. Files are opened without following any symbolic link: a pod that can write below
/var/log must not make us read /etc/shadow.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

from agent.server.logs import Decoder, LogOptions, tail_offset
from host import inotify
from host.errors import HostError, NotFound
from host.syscalls import AT_FDCWD, RESOLVE_NO_SYMLINKS, openat2

CHUNK = 128 << 10
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
            os.close(self._fd)

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
            while True:
                # Both are asked before reading: what was written before the answer is then read for certain.
                running, moved = self._running(), self._replaced()
                await self._copy()
                if self._decoder.done or (not running and not moved):
                    return
                if moved:
                    self._switch()
                    self._watch_file(watcher)
                    continue
                await watcher.wait(RUNNING_CHECK)

    def _watch_file(self, watcher: inotify.Watcher) -> None:
        try:
            watcher.add(f"/proc/self/fd/{self._fd}", inotify.FILE)
        except HostError:
            watcher.add(self._path, inotify.FILE)

    def _replaced(self) -> bool:
        """Whether the path names another file than the one we have open (and that file exists)."""
        try:
            there, ours = os.stat(self._path, follow_symlinks=False), os.fstat(self._fd)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)

    def _switch(self) -> None:
        try:
            fresh = open_log(self._path)
        except NotFound:
            return
        os.close(self._fd)
        self._fd = fresh
        self._decoder.end()
