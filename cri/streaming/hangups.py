"""Who has hung up, told even while nobody reads from the connection.

A client's input is read no faster than the program takes it. A program that takes none would so hide for ever
that its client is gone, and run on without anybody to serve. The kernel knows: EPOLLRDHUP (epoll_ctl(2)),
which asyncio does not ask for.
"""

from __future__ import annotations

import asyncio
import os
import select

_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLONESHOT


class HangUps:
    """Watches any number of sockets; belongs to the running event loop."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._epoll = select.epoll()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._ready)

    def _ready(self) -> None:
        for fd, _ in self._epoll.poll(0):
            future = self._waiting.get(fd)
            if future is not None and not future.done():
                future.set_result(None)

    async def wait(self, fd: int) -> None:
        """Return when the peer of an open socket sends nothing more, or is gone.

        What is watched is a descriptor of our own: the socket may be closed, and its number be another
        connection's, before its waiter is cancelled.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        own = os.dup(fd)
        try:
            self._epoll.register(own, _GONE)
            self._waiting[own] = future
            try:
                await future
            finally:
                del self._waiting[own]
                self._epoll.unregister(own)
        finally:
            os.close(own)

    def close(self) -> None:
        """Stop watching; no error when closed."""
        if not self._epoll.closed:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
