"""Helper programs for a program with an event loop: `host.processes.run` without blocking it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress

from host.errors import NoSpace, TimedOut, from_oserror
from host.processes import Completed, ProcessFailed, environment

_MAX_OUTPUT = 256 << 20  # a full table of a packet filter or of conntrack has tens of megabytes
_DEATH = 5.0
"""Seconds within which a killed helper is gone, unless it sleeps in the kernel."""


class Unkillable(TimedOut):
    """A helper outlived its time limit and SIGKILL too: it sleeps in the kernel, as for a dead file server.

    Attributes:
        ended: done as soon as the helper, which was left behind, has ended and was reaped.
    """

    def __init__(self, program: str, ended: asyncio.Future[None], detail: str) -> None:
        super().__init__(errno.ETIMEDOUT, f"run {program}", detail)
        self.ended = ended


async def run_async(
    argv: Sequence[str],
    *,
    input: bytes = b"",
    timeout: float = 30.0,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    max_output: int = _MAX_OUTPUT,
) -> Completed:
    """`processes.run` without blocking the event loop; a cancelled caller kills the helper.

    The helper leads a process group of its own, and is killed with all of it. What it prints beyond
    `max_output` bytes, on either stream, ends it too.

    Raises:
        NoSpace: it printed more than `max_output` bytes.
        Unkillable: it hangs in the kernel and was left behind.
        NotFound, TimedOut, ProcessFailed: as `processes.run`.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, output = await loop.subprocess_exec(
            lambda: _Output(argv[0], max_output), *argv, env=environment(env), process_group=0
        )
    except OSError as exc:
        raise from_oserror(exc, f"run {argv[0]}") from exc
    try:
        _feed(transport, input)
        async with asyncio.timeout(timeout):
            await output.complete
    except TimeoutError as exc:
        words = f"killed after {timeout:g} s"
        if not await _kill(transport, output):
            words = f"process {transport.get_pid()} hangs in the kernel, {words} in vain"
            raise Unkillable(argv[0], output.exited, words) from exc
        raise TimedOut(errno.ETIMEDOUT, f"run {argv[0]}", words) from exc
    finally:
        await _kill(transport, output)
        transport.close()  # a child that left the group may hold a pipe
    completed = Completed(transport.get_returncode() or 0, *map(bytes, output.streams))
    if check and completed.returncode != 0:
        raise ProcessFailed(argv[0], completed)
    return completed


async def _kill(transport: asyncio.SubprocessTransport, output: _Output) -> bool:
    """End a helper and its group if it lives; whether it is gone. One that sleeps in the kernel stays."""
    if transport.get_returncode() is None and not output.left:  # not reaped: the group's number is its own
        with suppress(ProcessLookupError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
        _, pending = await asyncio.wait({output.exited}, timeout=_DEATH)
        output.left = bool(pending)
    return not output.left


class _Output(asyncio.SubprocessProtocol):
    """What a helper prints, and its two ends: `exited`, and `complete` when its output is closed as well."""

    def __init__(self, program: str, limit: int) -> None:
        self._program, self._limit = program, limit
        self.streams = (bytearray(), bytearray())
        self.left = False
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        stream = self.streams[fd - 1]
        stream += data
        if len(stream) > self._limit and not self.complete.done():
            words = f"printed more than {self._limit} bytes"
            self.complete.set_exception(NoSpace(errno.ENOSPC, f"run {self._program}", words))

    def process_exited(self) -> None:
        self.exited.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.complete.done():
            self.complete.set_result(None)


def _feed(transport: asyncio.SubprocessTransport, data: bytes) -> None:
    """Hand over the standard input; a helper need not read it."""
    pipe = transport.get_pipe_transport(0)
    if isinstance(pipe, asyncio.WriteTransport):
        pipe.write(data)
        pipe.write_eof()
