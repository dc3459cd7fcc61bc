"""Reading and writing non-blocking descriptors (pipes, terminals) from the event loop."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable

CHUNK = 256 << 10
PIPE_MOST = 1 << 20
"""What a pipe can hold (pipe(7), pipe-max-size)."""


def read_now(fd: int) -> bytes | None:
    """What can be read at once: bytes, b"" at the end, None when nothing is there yet."""
    try:
        return os.read(fd, CHUNK)
    except BlockingIOError:
        return None
    except OSError as exc:
        if exc.errno == errno.EIO:  # a terminal whose last process has gone
            return b""
        raise


async def wait_readable(fd: int) -> None:
    """Return when a read would not block."""
    await _wait(fd, asyncio.get_running_loop().add_reader, asyncio.get_running_loop().remove_reader)


async def write_all(fd: int, data: bytes) -> bool:
    """Write everything; False when nobody reads any more."""
    loop = asyncio.get_running_loop()
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await _wait(fd, loop.add_writer, loop.remove_writer)
        except OSError as exc:
            if exc.errno in (errno.EPIPE, errno.EIO, errno.ECONNRESET):
                return False
            raise
    return True


async def _wait(fd: int, add: Callable[..., object], remove: Callable[[int], object]) -> None:
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add(fd, wake)
    try:
        await ready
    finally:
        remove(fd)
