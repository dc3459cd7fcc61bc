"""Exec and attach: bytes between a container's descriptors and a client, whichever protocol carries them.

No output is lost: everything the program wrote before it ended is in its pipe, so after its end the pipe is
read until it is empty, and only then the status is sent. A process it left behind may hold the pipe open;
that does not keep the stream waiting. When the client goes away the program is killed, and every task ends
with the stream.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Protocol

from cri.runtime.client import Attachment, ExecProcess, Runtime
from cri.runtime.spec import ExecSpec
from cri.streaming import channels, fds
from cri.streaming.channels import Input, InputEnd, Outcome, Resize
from host.errors import HostError
from proto.cri import runtime_pb2 as pb


class ClientGone(Exception):
    """The client's connection has ended."""


class CommandStreams(Protocol):
    """The client's side of an exec or attach."""

    async def write(self, channel: int, data: bytes) -> None:
        """Send output; returns when there is room for more. Raises ClientGone."""

    async def finish(self, outcome: Outcome) -> None:
        """Send the status and end the stream in good order."""

    def events(self) -> AsyncIterator[channels.Event]:
        """What the client sends, until it goes away."""

    async def gone(self) -> None:
        """Return when the client has hung up, even while nobody takes what it has sent."""


Sizer = Callable[[int, int], Awaitable[None]]


class Stdin:
    """The write end of a standard input that may be absent, and is closed once."""

    def __init__(self, fd: int | None, *, shared: bool) -> None:
        """`shared`: it is the terminal's descriptor, which its reader closes."""
        self._fd = fd
        self._shared = shared

    async def write(self, data: bytes) -> None:
        """Write; thrown away when there is no input or its reader has gone."""
        if self._fd is not None and not await fds.write_all(self._fd, data):
            self.close()

    def close(self) -> None:
        """End of input. On a terminal it is the user's ^D that ends it, not a closed connection."""
        if self._fd is not None and not self._shared:
            os.close(self._fd)
        self._fd = None


async def exec_session(
    runtime: Runtime, request: pb.ExecRequest, streams: CommandStreams, *, sandbox_id: str
) -> None:
    """Run a command for a client, from its start to its status."""
    spec = ExecSpec(
        argv=tuple(request.cmd),
        tty=request.tty,
        stdin=request.stdin,
        stdout=request.stdout,
        stderr=request.stderr and not request.tty,
    )
    try:
        process = await runtime.exec(sandbox_id, request.container_id, spec)
    except HostError as exc:
        await streams.finish(Outcome(error=f"error executing command in container: {exc}"))
        return
    stdin = Stdin(process.stdin, shared=process.stdin is not None and process.stdin == process.stdout)
    ended = asyncio.Event()
    try:
        code = await _run_exec(process, stdin, streams, ended)
    except ClientGone:
        await process.kill()
        return
    except asyncio.CancelledError:
        await process.kill()
        raise
    finally:
        stdin.close()
        _close(process.stdout, process.stderr)
    await streams.finish(Outcome(exit_code=code))


async def _run_exec(process: ExecProcess, stdin: Stdin, streams: CommandStreams, ended: asyncio.Event) -> int:
    async def resize(width: int, height: int) -> None:
        await process.resize(width=width, height=height)

    async with _Tasks() as tasks:
        tasks.client(_follow_client(streams, stdin, resize))
        tasks.client(_await_end(streams))
        outputs = [
            tasks.start(_pump(fd, channel, streams, ended))
            for fd, channel in ((process.stdout, channels.STDOUT), (process.stderr, channels.STDERR))
            if fd is not None
        ]
        code = await tasks.result(tasks.start(process.wait()))
        ended.set()
        for output in outputs:
            await tasks.result(output)
        return code


async def attach_session(
    runtime: Runtime,
    request: pb.AttachRequest,
    streams: CommandStreams,
    *,
    sandbox_id: str,
    ended: asyncio.Event,
) -> None:
    """Connect a client with a running container's own streams until either goes away.

    Args:
        ended: set once the container has ended.
    """
    container_id = request.container_id
    try:
        attached = await runtime.attach(
            sandbox_id, container_id, stdin=request.stdin, stdout=request.stdout, stderr=request.stderr
        )
    except HostError as exc:
        await streams.finish(Outcome(error=f"error attaching to container: {exc}"))
        return
    stdin = Stdin(attached.stdin, shared=attached.stdin is not None and attached.stdin == attached.stdout)

    async def resize(width: int, height: int) -> None:
        await runtime.resize(sandbox_id, container_id, width=width, height=height)

    try:
        await _run_attach(attached, stdin, streams, resize, ended)
    except ClientGone:
        return
    finally:
        stdin.close()
        _close(attached.stdout, attached.stderr)
    await streams.finish(Outcome())


async def _run_attach(
    attached: Attachment, stdin: Stdin, streams: CommandStreams, resize: Sizer, ended: asyncio.Event
) -> None:
    async with _Tasks() as tasks:
        tasks.client(_follow_client(streams, stdin, resize))
        tasks.client(_await_end(streams))
        outputs = [
            tasks.start(_pump(fd, channel, streams, ended))
            for fd, channel in ((attached.stdout, channels.STDOUT), (attached.stderr, channels.STDERR))
            if fd is not None
        ]
        outputs.append(tasks.start(_wait_event(ended)))
        for output in outputs:
            await tasks.result(output)


async def _wait_event(event: asyncio.Event) -> None:
    await event.wait()


async def _pump(fd: int, channel: int, streams: CommandStreams, ended: asyncio.Event) -> None:
    """Send what a descriptor gives until its end, or until it is empty after the program's end.

    What the program wrote before its end is in the pipe then, so no more is read than a pipe holds: one that
    it left behind may write for ever.
    """
    left = fds.PIPE_MOST
    while left > 0:
        over = ended.is_set()  # asked before the read: what was written before the end is then in the pipe
        data = fds.read_now(fd)
        if data:
            left -= len(data) if over else 0
            await streams.write(channel, data)
        elif data is not None or over:
            return
        else:
            await _first(fds.wait_readable(fd), ended.wait())


async def _first(*works: Awaitable[object]) -> None:
    """Wait for the first of these; the others are cancelled, and have ended when this returns."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _end(tasks)


async def _end(tasks: Iterable[asyncio.Future[object]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, ClientGone, HostError):
            await task


async def _follow_client(streams: CommandStreams, stdin: Stdin, resize: Sizer) -> None:
    async for event in streams.events():
        match event:
            case Input(data):
                await stdin.write(data)
            case InputEnd():
                stdin.close()
            case Resize(width, height):
                with suppress(HostError):  # no terminal, or it has just gone
                    await resize(width, height)
    raise ClientGone


async def _await_end(streams: CommandStreams) -> None:
    await streams.gone()
    raise ClientGone


class _Tasks:
    """The tasks of one stream; leaving the block ends them all, and the client's going ends the block."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Future[object]] = []
        self._client: list[asyncio.Future[object]] = []

    async def __aenter__(self) -> _Tasks:
        return self

    async def __aexit__(self, *details: object) -> None:
        await _end(self._tasks)

    def start(self, work: Awaitable[object]) -> asyncio.Future[object]:
        task = asyncio.ensure_future(work)
        self._tasks.append(task)
        return task

    def client(self, work: Awaitable[object]) -> None:
        self._client.append(self.start(work))

    async def result(self, task: asyncio.Future[object]) -> int:
        """Wait for a task; raises its error, or ClientGone when the client goes first."""
        while not task.done():
            done, _ = await asyncio.wait({task, *self._client}, return_when=asyncio.FIRST_COMPLETED)
            for ended in done.intersection(self._client):
                ended.result()
        value = task.result()
        return value if isinstance(value, int) else 0


def _close(*descriptors: int | None) -> None:
    for fd in {fd for fd in descriptors if fd is not None}:
        os.close(fd)
