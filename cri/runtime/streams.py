"""A container's standard streams on the supervisor's side: pipes into the log and to whoever is attached."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from cri.runtime.log import LineLog
from cri.runtime.loop import OUT
from host import syscalls
from host.errors import from_errno, from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cri.runtime.loop import Loop

_CHUNK = 1 << 16
_LARGE = 1 << 12
"""Short lines grow six times by their heads, and are held three times while they are made."""
_QUIET_SECONDS = 1.0
"""After this time without a large read the memory that large outputs took is given back."""
_BURST = 4
"""Chunks of one stream before the others have their turn."""
PIPE = 1 << 18
"""Of a container's output: it runs on for a quarter of a megabyte while we write."""
_ATTACH_PIPE = 1 << 20
_LOG_MODE = 0o640
_STALL_SECONDS = 10.0


class LogFile:
    """The file CRI log lines are appended to; a full disk loses lines, never the container."""

    def __init__(self, path: bytes) -> None:
        """`path`: absolute; empty for no log."""
        self._path = path
        self._fd = -1
        self._torn = False
        self.dropped = 0
        """Bytes that could not be written."""

    def open(self) -> None:
        """Open, or open again after rotation; when that fails the open file is kept.

        The folder is opened first and the file by its name in it, never through a link (CVE-2025-0750), and
        it must be a plain file of one name: a second one (a hard link) would be somebody else's file.

        Raises:
            HostError: the folder is missing, or the name is no file to log to.
        """
        if not self._path:
            return
        fd = _open_log(self._path)
        self.close()
        self._fd = fd
        self._torn = False

    def append(self, lines: bytes) -> None:
        """Write, or count what could not be written. A line that was cut so is ended before the next one."""
        if self._fd < 0 or not lines:
            return
        data = b"\n" + lines if self._torn else lines
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:] if done else data)
        except OSError:
            self.dropped += len(data) - done
        if done:
            self._torn = data[done - 1] != 10

    def close(self) -> None:
        """No error when not open."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open_log(path: bytes) -> int:
    what = f"open log {os.fsdecode(path)}"
    folder, name = os.path.split(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        dirfd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = os.open(name, flags, _LOG_MODE, dir_fd=dirfd)
        finally:
            os.close(dirfd)
    except OSError as exc:
        raise from_oserror(exc, what) from exc
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(fd)
        raise from_errno(errno.EINVAL, what, "it is not a plain file with one name")
    os.fchmod(fd, _LOG_MODE)
    return fd


class Output:
    """One output stream: read end of a pipe (or a terminal's master), its log lines and its listeners.

    A listener gets all of it: when its pipe is full the stream is held until there is room again, and so is
    the container in the end. One that takes nothing for `_STALL_SECONDS` is cut off, so that a client which
    sleeps holds the container up for that long and no longer.
    """

    def __init__(self, loop: Loop, fd: int, stream: bytes, log: LogFile) -> None:
        """`fd` is taken over and must be non-blocking."""
        self._loop, self._fd, self._log = loop, fd, log
        self._lines = LineLog(stream)
        self._listeners: dict[int, bytes] = {}
        """What each one's pipe had no room for."""
        loop.watch(fd, self._ready)

    def listen(self) -> int:
        """A pipe that gets a copy of what comes from now on; the reader's end, for the caller to pass on."""
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        enlarge(write, _ATTACH_PIPE)
        if self._fd >= 0:
            self._listeners[write] = b""
            self._loop.watch(write, lambda _: self._dismiss(write), 0)
        else:
            os.close(write)
        return read

    def _ready(self, _events: int) -> None:
        for _ in range(_BURST):
            moved = self.pump()
            if moved > _LARGE:
                self._loop.alarm(syscalls.release_memory, _QUIET_SECONDS)
            if moved < _CHUNK:
                break
        if self._fd >= 0 and any(self._listeners.values()):
            self._loop.forget(self._fd)
            self._loop.alarm(self._cut_off, _STALL_SECONDS)

    def pump(self) -> int:
        """Move what is there; how many bytes that was."""
        if self._fd < 0:
            return 0
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return 0
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            data = b""
        if not data:
            self.close()
            return 0
        self._log.append(self._lines.feed(data, time.time_ns()))
        for fd, waiting in list(self._listeners.items()):
            self._copy(fd, waiting + data)
        return len(data)

    def _copy(self, fd: int, data: bytes) -> None:
        """What does not fit waits; a closed pipe ends the listener."""
        sent = 0
        try:
            sent = os.write(fd, data)
        except BlockingIOError:
            sent = 0
        except BrokenPipeError:
            self._dismiss(fd)
            return
        if sent < len(data) and not self._listeners[fd]:
            self._loop.watch(fd, lambda _: self._resume(fd), OUT)
        self._listeners[fd] = data[sent:]

    def _resume(self, fd: int) -> None:
        """A listener that was waited for has room again, or is gone."""
        self._copy(fd, self._listeners[fd])
        if self._listeners.get(fd):
            self._loop.alarm(self._cut_off, _STALL_SECONDS)
            return
        if fd in self._listeners:
            self._loop.watch(fd, lambda _: self._dismiss(fd), 0)
        self._go_on()

    def _cut_off(self) -> None:
        for fd, waiting in list(self._listeners.items()):
            if waiting:
                self._dismiss(fd)

    def _dismiss(self, fd: int) -> None:
        del self._listeners[fd]
        self._loop.forget(fd)
        os.close(fd)
        self._go_on()

    def _go_on(self) -> None:
        """Once nobody is waited for."""
        if any(self._listeners.values()):
            return
        self._loop.alarm(self._cut_off, None)
        if self._fd >= 0:
            self._loop.watch(self._fd, self._ready)
        elif self._listeners:
            self._dismiss(next(iter(self._listeners)))

    def close(self) -> None:
        """End of the stream: the last line, and end of file for listeners once they have everything."""
        if self._fd < 0:
            return
        self._loop.forget(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._log.append(self._lines.flush(time.time_ns()))
        for fd, waiting in list(self._listeners.items()):
            if not waiting and fd in self._listeners:
                self._dismiss(fd)


def enlarge(pipe: int, size: int) -> None:
    """Beyond the user's share (pipe(7), pipe-user-pages-soft) the pipe stays as it is."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)
    except PermissionError:
        return
