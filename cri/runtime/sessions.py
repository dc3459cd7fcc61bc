"""What people and probes do inside a running container: exec, attach, resize."""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress

from cri.runtime import messages
from cri.runtime.placement import exec_process
from cri.runtime.process import Attachment, ExecProcess, collect
from cri.runtime.spec import ExecResult, ExecSpec
from cri.runtime.state import StateFolder
from cri.runtime.supervisors import Supervisors
from host.errors import HostError, NotFound, TimedOut


class Sessions:
    """The half of `Runtime` whose calls leave the container as it is. Errors as there."""

    def __init__(self, pods: Supervisors, state: StateFolder) -> None:
        """`pods`: the supervisors that are connected; `state`: where containers' folders are."""
        self._pods = pods
        self._state = state

    async def exec(self, sandbox_id: str, container_id: str, spec: ExecSpec) -> ExecProcess:
        """Start a further process in a running container.

        Raises:
            StartFailed: the program could not be executed.
        """
        link = self._pods.link(sandbox_id)
        number, exited = self._pods.expect_exec(sandbox_id)
        fields = messages.exec_request(spec, number)
        fields["process"] = exec_process(spec, self._state, sandbox_id, container_id)
        try:
            value, fds = await link.request_with_fds("exec", container=container_id, **fields)
        except asyncio.CancelledError:
            with suppress(HostError):
                await link.request("exec-signal", exec=number, signal=9)
            raise
        except BaseException:
            self._pods.drop_exec(sandbox_id, number)
            raise

        async def send_signal(signal: int) -> None:
            with suppress(NotFound):
                await link.request("exec-signal", exec=number, signal=messages.signal_number(signal))

        streams = dict(zip(value["streams"], fds, strict=True))
        return ExecProcess(value["pid"], streams, exited=exited, send_signal=send_signal)

    async def exec_sync(
        self,
        sandbox_id: str,
        container_id: str,
        argv: tuple[str, ...],
        *,
        timeout: float | None,
        limit: int = 16 << 20,
    ) -> ExecResult:
        """Run to its end and collect the output, at most `limit` bytes a stream.

        Raises:
            TimedOut: after `timeout` seconds; the process and what it has started are killed.
            StartFailed: the program could not be executed.
        """
        process = await self.exec(sandbox_id, container_id, ExecSpec(argv=argv))
        try:
            return await collect(process, limit=limit, timeout=timeout)
        except TimeoutError as exc:
            raise TimedOut(errno.ETIMEDOUT, f"exec {argv[0]!r}", f"no end after {timeout} s") from exc
        finally:
            process.close()
            await process.kill()

    async def attach(
        self, sandbox_id: str, container_id: str, *, stdin: bool, stdout: bool, stderr: bool
    ) -> Attachment:
        """Copies of the container's output from now on, and its standard input if the spec has `stdin`.

        A reader that does not keep up loses output (never the log, never the container).
        """
        fields = {"container": container_id, "stdin": stdin, "stdout": stdout, "stderr": stderr}
        value, fds = await self._pods.link(sandbox_id).request_with_fds("attach", **fields)
        streams = dict(zip(value["streams"], fds, strict=True))
        return Attachment(
            stdin=streams.get("stdin"), stdout=streams.get("stdout"), stderr=streams.get("stderr")
        )

    async def resize(self, sandbox_id: str, container_id: str, *, width: int, height: int) -> None:
        """Set the size of a tty container's terminal."""
        fields = {"container": container_id, "width": width, "height": height}
        await self._pods.link(sandbox_id).request("resize", **fields)
