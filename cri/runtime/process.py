"""What nodelet-cri holds of an exec or attach: descriptors, and a way to wait, signal and resize."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from cri.runtime.spec import ExecResult

_CHUNK = 1 << 18
_DRAIN_S = 1.0
_PIPE_MOST = 1 << 20
"""What a pipe can hold (pipe(7), pipe-max-size): what a process wrote before its end is within that."""


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """File descriptors of a running container's streams; non-blocking, owned (and closed) by the caller."""

    stdin: int | None
    """Write end (pipe, or the terminal's master); closing it is end of file when the spec has stdin_once."""
    stdout: int | None
    stderr: int | None


class ExecProcess:
    """A process started by `Runtime.exec`. It is killed when nodelet-cri goes away."""

    def __init__(
        self,
        pid: int,
        streams: dict[str, int],
        *,
        exited: asyncio.Future[int],
        send_signal: Callable[[int], Awaitable[None]],
    ) -> None:
        self.pid = pid
        terminal = streams.get("terminal")
        self.stdin: int | None = streams.get("stdin", terminal)
        """Write end, non-blocking, the caller's; with tty the terminal's master (same fd as stdout)."""
        self.stdout: int | None = streams.get("stdout", terminal)
        self.stderr: int | None = streams.get("stderr")
        self._terminal = terminal
        self._exited = exited
        self._send_signal = send_signal

    async def wait(self) -> int:
        """Exit code (128 + signal when killed).

        Raises:
            NotFound: the supervisor is gone, and the process with it.
        """
        return await asyncio.shield(self._exited)

    async def kill(self, signal: int = 9) -> None:
        """Signal the process and everything in its process group; no error when it is gone."""
        if not self._exited.done():
            await self._send_signal(signal)

    async def resize(self, *, width: int, height: int) -> None:
        """Set the terminal's size; nothing to do without tty."""
        if self._terminal is not None:
            set_window_size(self._terminal, width=width, height=height)

    def close(self) -> None:
        """Close every descriptor that is left with this object."""
        for fd in {self.stdin, self.stdout, self.stderr}:
            if fd is not None:
                with suppress(OSError):
                    os.close(fd)
        self.stdin = self.stdout = self.stderr = self._terminal = None


def set_window_size(terminal: int, *, width: int, height: int) -> None:
    """TIOCSWINSZ, in characters."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


async def collect(process: ExecProcess, *, limit: int, timeout: float | None) -> ExecResult:
    """Read both outputs to their end and wait for the exit code.

    A grandchild that keeps the pipes open after the process has ended is not waited for longer than a second,
    which no longer counts against the time limit.

    Args:
        limit: bytes of each output that are kept; what is beyond is read and thrown away.
        timeout: seconds for the process to end; None for no limit.

    Raises:
        TimeoutError: it has not ended; it is the caller's to kill.
    """
    outputs = [_Output(process.stdout, limit), _Output(process.stderr, limit)]
    readers = [asyncio.ensure_future(output.run()) for output in outputs]
    try:
        async with asyncio.timeout(timeout):
            code = await process.wait()
        await asyncio.wait(readers, timeout=_DRAIN_S)
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        process.close()
    return ExecResult(
        code=code,
        stdout=bytes(outputs[0].data),
        stderr=bytes(outputs[1].data),
        truncated=any(output.truncated for output in outputs),
    )


class _Output:
    """One non-blocking descriptor read to its end, keeping at most `limit` bytes (CVE-2022-1708)."""

    def __init__(self, fd: int | None, limit: int) -> None:
        self._fd, self._limit = fd, limit
        self.data = bytearray()
        self.truncated = False

    async def run(self) -> None:
        if self._fd is None:
            return
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def ready() -> None:
            if self._take() == 0 and not done.done():
                done.set_result(None)

        loop.add_reader(self._fd, ready)
        try:
            await done
        finally:
            loop.remove_reader(self._fd)
            self._take_rest()

    def _take_rest(self) -> None:
        """What is in the pipe, and no more than it holds: somebody may go on writing for ever."""
        left = _PIPE_MOST
        while left > 0 and (taken := self._take()):
            left -= taken

    def _take(self) -> int | None:
        """Take a chunk: its size, 0 at the end, None when nothing is there now."""
        if self._fd is None:
            return 0
        try:
            piece = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            return 0
        room = self._limit - len(self.data)
        self.data += piece[:room]
        self.truncated = self.truncated or len(piece) > room
        return len(piece)
