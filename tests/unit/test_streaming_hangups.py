"""Hang-ups of real sockets, seen while nobody reads, and whatever becomes of the socket meanwhile."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from cri.streaming.hangups import HangUps


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def started(hang_ups: HangUps, fd: int) -> asyncio.Task[None]:
    task = asyncio.create_task(hang_ups.wait(fd))
    await asyncio.sleep(0)
    return task


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def moved(fd: int, number: int) -> int:
    if fd != number:
        os.dup2(fd, number)
        os.close(fd)
    return number


async def test_a_hang_up_is_seen_behind_bytes_nobody_reads(pair: tuple[socket.socket, socket.socket]):
    ours, theirs = pair
    hang_ups = HangUps()
    theirs.send(b"unread")
    waiting = await started(hang_ups, ours.fileno())
    assert not waiting.done()
    theirs.shutdown(socket.SHUT_WR)
    await asyncio.wait_for(waiting, 30)
    hang_ups.close()


async def test_the_socket_may_be_closed_while_it_waits(pair: tuple[socket.socket, socket.socket]):
    """As a transport does whose write fails: the number may be another connection's by then."""
    ours, _ = pair
    hang_ups = HangUps()
    old = await started(hang_ups, ours.fileno())
    number = ours.fileno()
    ours.close()
    successor, peer = socket.socketpair()
    with socket.socket(fileno=moved(successor.detach(), number)) as reused, peer:
        new = await started(hang_ups, reused.fileno())
        await cancelled(old)
        assert not new.done()
        peer.close()
        await asyncio.wait_for(new, 30)
    hang_ups.close()


async def test_a_waiter_keeps_no_descriptor(pair: tuple[socket.socket, socket.socket]):
    ours, theirs = pair
    hang_ups = HangUps()
    waiting = await started(hang_ups, ours.fileno())
    ours.close()
    await cancelled(waiting)
    assert theirs.recv(1) == b""
    hang_ups.close()
