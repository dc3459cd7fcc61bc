"""A container of an external runtime, as its supervisor sees it.

    created ──start──▶ `create` under way ──▶ `start` under way ──▶ running
       │                     │                       │                 │
       ▼                     ▼                       ▼                 ▼
     exited ◀──────────────exited ◀────────────────exited ◀──────────exited

The exit is on disk before it is told. Nothing but pipes and a log exists before StartContainer; an exit that
comes before `start` has ended waits for it, so that facts and events keep their order.
"""

from __future__ import annotations

import _signal as signal
import errno
import os
import time

from cri.runtime import init, userns
from cri.runtime.container import Container, complain
from cri.runtime.execution import signal_session
from cri.runtime.oci.bundle import Creation
from cri.runtime.oci.commands import read_pid
from cri.runtime.oci.console import Console
from cri.runtime.streams import Output
from host import syscalls
from host.errors import from_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cri.runtime.connection import Answer
    from cri.runtime.loop import Loop
    from cri.runtime.oci.commands import Commands

_PID_FILE = b"init.pid"
_CONSOLE = b"console"


class OciContainer(Container):
    """`Container` with a runtime's commands in place of our own init."""

    def __init__(
        self,
        loop: Loop,
        folder: bytes,
        spec: dict[str, Any],
        *,
        commands: Commands,
        on_exit: Callable[[Container], None],
    ) -> None:
        """`on_exit`: called when the exit is on disk."""
        super().__init__(loop, folder, spec)
        self.commands = commands
        self._on_exit = on_exit
        self._pid_namespace: int | None = None
        self._stdio: tuple[int, int, int] | None = None
        self._console: Console | None = None
        self._creation = 0
        """Process id of `create` while it is under way."""
        self._is_killed = False
        self._early_end: int | None = None
        """Wait status of a first process that ended before `start` did."""

    def create(self, answer: Answer, pid_namespace: int | None, owner: int) -> None:
        """Open the log and make the pipes. A user namespace (`owner`) is not for external runtimes.

        Raises:
            HostError: the log cannot be opened.
        """
        self._log.open()
        self._pid_namespace = pid_namespace
        self._stdio, ours = self._make_stdio()
        self._take_streams(ours)
        self.created_at = time.time_ns()
        answer.ok(self.facts())

    def start(self, answer: Answer) -> None:
        """`create`, then `start`; the answer comes after both."""
        if self._stdio is None or self.exit is not None:
            raise from_errno(errno.EALREADY, f"start container {self.id}: it was started before")
        words = [b"create", b"--bundle", self._folder, b"--pid-file", self._folder + b"/" + _PID_FILE]
        if self.spec["tty"]:
            self._console = Console(self._folder, _CONSOLE)
            words += [b"--console-socket", _CONSOLE]
        idmaps: list[int] = []
        try:
            process = _process_of(self._pid_namespace)
            idmaps = userns.open_all(self.spec["idmaps"], -1)
            creation = Creation(os.getpid(), process, idmaps)
            pid = self.commands.run(self.spec, words, self._created, stdio=self._stdio, creation=creation)
        except OSError:
            self._close_console()
            raise
        finally:
            for fd in idmaps:
                os.close(fd)
        self._creation, self._starting = pid, answer
        self._close_stdio()

    def _created(self, error: dict[str, Any] | None) -> None:
        self._creation = 0
        if error is None:
            try:
                self._take_over()
                self.commands.run(self.spec, [b"start"], self._started)
            except (OSError, ValueError) as exc:
                error = {"errno": errno.EIO, "message": f"OCI runtime create: {exc}", "step": "create"}
        self._close_console()
        if error is not None:
            self._give_up(error)

    def _take_over(self) -> None:
        """The first process is our child from here on."""
        pid = read_pid(self._folder + b"/" + _PID_FILE)
        self.commands.adopt(pid, self._process_ended)
        self.pid = pid
        if self._early_end is None:
            self.pidfd = syscalls.pidfd_open(self.pid)
        if self._console is not None:
            self._master = self._console.receive()
            self._outputs["stdout"] = Output(self._loop, os.dup(self._master), b"stdout", self._log)
        if self._is_killed:
            self.kill()

    def _started(self, error: dict[str, Any] | None) -> None:
        if error is not None:
            self._give_up(error)
            return
        self.started_at = time.time_ns()
        if self._starting is not None:
            answer, self._starting = self._starting, None
            answer.ok(self.facts())
        self._note_started()
        if self._early_end is not None:
            self._finish(self._early_end)

    def _give_up(self, error: dict[str, Any]) -> None:
        """A container that could not be started has ended with code 128, once nothing of it is left."""
        self._error = error
        self.kill()
        if not self.pid or self._early_end is not None:
            self._finish(init.FAILED << 8)

    def _process_ended(self, status: int) -> None:
        if self._error is not None:
            self._finish(init.FAILED << 8)
        elif self._starting is not None:
            self._early_end = status
        else:
            self._finish(status)

    def _finish(self, status: int) -> None:
        self.ended(status)
        self._on_exit(self)

    def signal(self, number: int) -> None:
        """By the runtime's `kill`, since only it knows what the first process is; SIGKILL from us at once."""
        if number == signal.SIGKILL:
            super().signal(number)
        elif self.exit is None and self.pid:
            self.commands.run(self.spec, [b"kill"], self._signalled, after=(b"%d" % number,))

    def _signalled(self, error: dict[str, Any] | None) -> None:
        if error is not None and self.exit is None:
            complain(f"signal to container {self.id}: {error['message']}")

    def kill(self) -> None:
        """Everything in its cgroup, and the creation where that is under way."""
        self._is_killed = True
        if self._creation:
            signal_session(self._creation, signal.SIGKILL)
        if self._stdio is not None and self.exit is None:
            self._finish(signal.SIGKILL)
        else:
            super().kill()

    def make_exec_cgroup(self) -> bytes:
        """Only beside v1: on v2 alone the runtime decides which cgroup a process is in."""
        return super().make_exec_cgroup() if self.spec["oci"]["birthplace"] else self.spec["birthplace"]

    def _close_stdio(self) -> None:
        if self._stdio is not None:
            for fd in set(self._stdio):
                os.close(fd)
            self._stdio = None

    def _close_console(self) -> None:
        if self._console is not None:
            self._console.close()
            self._console = None

    def close(self) -> None:
        """As for our own, with what only a container that never started holds."""
        super().close()
        self._close_stdio()


def _process_of(pidfd: int | None) -> int:
    """The process id behind a pidfd, 0 for none (proc(5), fdinfo).

    Raises:
        HostError: ESRCH, it has ended.
    """
    if pidfd is None or pidfd < 0:
        return 0
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        for line in file:
            if line.startswith(b"Pid:") and int(line[4:]) > 0:
                return int(line[4:])
    raise from_errno(errno.ESRCH, "join the PID namespace of a process that has ended")
