"""A container's standard streams on the supervisor's side: pipes into the log and to whoever is attached."""

from __future__ import annotations

import errno
import fcntl
import os
import time

from cri.runtime.log import LineLog
from host.errors import from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cri.runtime.loop import Loop

_CHUNK = 1 << 16
_ATTACH_PIPE = 1 << 20
_LOG_MODE = 0o640


class LogFile:
    """The file CRI log lines are appended to; a full disk loses lines, never the container."""

    def __init__(self, path: bytes) -> None:
        """`path`: absolute; empty for no log."""
        self._path = path
        self._fd = -1
        self.dropped = 0
        """Bytes that could not be written."""

    def open(self) -> None:
        """Open, or open again after rotation.

        The folder is opened first and the file by its name in it, never through a link (CVE-2025-0750).

        Raises:
            HostError: the folder is missing, or the name is a link.
        """
        if not self._path:
            return
        folder, name = os.path.split(self._path)
        try:
            dirfd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                fd = os.open(name, flags, _LOG_MODE, dir_fd=dirfd)
                os.fchmod(fd, _LOG_MODE)
            finally:
                os.close(dirfd)
        except OSError as exc:
            raise from_oserror(exc, f"open log {os.fsdecode(self._path)}") from exc
        self.close()
        self._fd = fd

    def append(self, lines: bytes) -> None:
        """Write, or count what could not be written."""
        if self._fd < 0 or not lines:
            return
        view = memoryview(lines)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except OSError:
                self.dropped += len(view)
                return

    def close(self) -> None:
        """No error when not open."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Output:
    """One output stream: read end of a pipe (or a terminal's master), its log lines and its listeners."""

    def __init__(self, loop: Loop, fd: int, stream: bytes, log: LogFile) -> None:
        """`fd` is taken over and must be non-blocking."""
        self._loop, self._fd, self._log = loop, fd, log
        self._lines = LineLog(stream)
        self._listeners: list[int] = []
        self._on_close: Callable[[], None] | None = None
        loop.watch(fd, self._ready)

    @property
    def is_open(self) -> bool:
        """Whether somebody may still write to it."""
        return self._fd >= 0

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back once when the last writer is gone."""
        self._on_close = callback

    def listen(self) -> int:
        """A pipe that gets a copy of what comes from now on; the reader's end, for the caller to pass on."""
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _enlarge(write)
        if self.is_open:
            self._listeners.append(write)
            self._loop.watch(write, lambda _: self._dismiss(write), 0)
        else:
            os.close(write)
        return read

    def _ready(self, _events: int) -> None:
        self.pump()

    def pump(self) -> bool:
        """Move what is there; whether there was anything."""
        if self._fd < 0:
            return False
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            data = b""
        if not data:
            self.close()
            return False
        self._log.append(self._lines.feed(data, time.time_ns()))
        for fd in self._listeners[:]:
            self._copy(fd, data)
        return True

    def _copy(self, fd: int, data: bytes) -> None:
        """A full pipe loses the copy; a closed one ends the listener."""
        try:
            os.write(fd, data)
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._dismiss(fd)

    def _dismiss(self, fd: int) -> None:
        self._listeners.remove(fd)
        self._loop.forget(fd)
        os.close(fd)

    def flush(self) -> None:
        """Write a last line that has no line feed."""
        self._log.append(self._lines.flush(time.time_ns()))

    def close(self) -> None:
        """End of the stream: last line, end of file for listeners."""
        if self._fd < 0:
            return
        self._loop.forget(self._fd)
        os.close(self._fd)
        self._fd = -1
        self.flush()
        for fd in self._listeners[:]:
            self._dismiss(fd)
        if self._on_close is not None:
            self._on_close()


def _enlarge(pipe: int) -> None:
    """Beyond the user's share (pipe(7), pipe-user-pages-soft) the pipe stays as it is."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _ATTACH_PIPE)
    except PermissionError:
        return
