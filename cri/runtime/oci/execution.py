"""A further process in a container of an external runtime: `exec --detach`, then a child of ours."""

from __future__ import annotations

import _signal as signal
import errno
import os

from cri.runtime.execution import Execution
from cri.runtime.oci.commands import read_pid
from cri.runtime.oci.console import Console

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cri.runtime.connection import Answer
    from cri.runtime.loop import Loop
    from cri.runtime.oci.container import OciContainer


class OciExecution(Execution):
    """`Execution` with a runtime's command in place of our own fork."""

    def __init__(
        self,
        loop: Loop,
        container: OciContainer,
        request: dict[str, Any],
        answer: Answer,
        *,
        on_done: Callable[[Execution], None],
    ) -> None:
        """`on_done`: called when it has ended, or could not begin."""
        self._commands, self._on_done = container.commands, on_done
        self._pending_signal = 0
        self._early_end: int | None = None
        """Wait status of a process that ended before its beginning was told."""
        self._has_failed = False
        self._console: Console | None = None
        self._base = b"%s/exec-%d" % (container.spec["oci"]["bundle"], self._commands.next_number())
        super().__init__(loop, container, request, answer)

    def _launch(self, stdio: tuple[int, int, int]) -> None:
        words = [
            b"exec",
            b"--detach",
            b"--process",
            self._base + b".json",
            b"--pid-file",
            self._base + b".pid",
        ]
        birthplace = self._cgroup if self.container.spec["oci"]["birthplace"] else b""
        try:
            if self._request["tty"]:
                folder, name = os.path.split(self._base + b".tty")
                self._console = Console(folder, name)
                words += [b"--console-socket", name]
            with open(self._base + b".json", "wb") as file:
                file.write(self._request["process"])
            self._commands.run(self.container.spec, words, self._begun, stdio=stdio, birthplace=birthplace)
        except OSError:
            self._clean()
            raise

    def _begun(self, error: dict[str, Any] | None) -> None:
        if error is None:
            try:
                pid = read_pid(self._base + b".pid")
                self._commands.adopt(pid, self._process_ended)
                self.pid = pid
                if self._console is not None:
                    self._names.append("terminal")
                    self._fds.append(self._console.receive())
            except (OSError, ValueError) as exc:
                error = {"errno": errno.EIO, "message": f"OCI runtime exec: {exc}", "step": "exec"}
        self._clean()
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if error is not None:
            self._has_failed = True
            if self.pid and self._early_end is None:
                self.kill(signal.SIGKILL)
            self._close_fds()
            self.container.remove_exec_cgroup(self._cgroup)
            answer.fail(error["errno"], error["message"], error["step"])
            self._on_done(self)
            return
        fds, self._fds = self._fds, []
        answer.ok({"pid": self.pid, "streams": self._names}, tuple(fds))
        if self._early_end is not None:
            self._process_ended(self._early_end)
        elif self._pending_signal:
            self.kill(self._pending_signal)

    def _process_ended(self, status: int) -> None:
        if self._answer is not None:
            self._early_end = status
            return
        self.container.remove_exec_cgroup(self._cgroup)
        if not self._has_failed:
            self._tell_end(status)
            self._on_done(self)

    def kill(self, number: int) -> None:
        """Its session; one that has not begun is signalled as soon as it has."""
        if self.pid:
            super().kill(number)
        else:
            self._pending_signal = number

    def _clean(self) -> None:
        if self._console is not None:
            self._console.close()
            self._console = None
        for ending in (b".json", b".pid"):
            try:
                os.unlink(self._base + ending)
            except FileNotFoundError:
                continue
