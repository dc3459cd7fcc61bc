"""A further process in a running container, as its supervisor sees it; it belongs to one connection.

With cgroup2 it is born in a cgroup of its own below the container's. So what a client that has gone left
running can be killed as a whole, a daemon in a session of its own included, and the container's limits,
figures and kill cover it all the same. What it leaves behind when it ends by itself lives on, as with any
runtime. On v1 alone the process group is all that can be found again.
"""

from __future__ import annotations

import _signal as signal
import errno
import os

from cri.runtime import init, namespaces, sockets, userns, wire
from cri.runtime.streams import PIPE, enlarge
from host.errors import from_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cri.runtime.connection import Answer, Connection
    from cri.runtime.container import Container
    from cri.runtime.loop import Loop
    from cri.runtime.sockets import Socket


class Execution:
    """Started at once; its streams go to the client as descriptors and never pass through here."""

    def __init__(self, loop: Loop, container: Container, request: dict[str, Any], answer: Answer) -> None:
        """`request`: what `messages.exec_request` writes."""
        if container.exit is not None or not container.started_at:
            raise from_errno(errno.ESRCH, f"exec in container {container.id}: it is not running")
        self._loop = loop
        self._request = request
        self._answer: Answer | None = answer
        self._error: dict[str, Any] = {}
        self.connection: Connection = answer.connection
        self.container = container
        self.id: int = request["exec"]
        self._names: list[str] = []
        self._fds: list[int] = []
        self.pid = 0
        stdio = self._make_stdio()
        self._cgroup = container.make_exec_cgroup()
        try:
            self._launch(stdio)
        except OSError:
            self._close_fds()
            container.remove_exec_cgroup(self._cgroup)
            raise
        finally:
            for fd in set(stdio):
                os.close(fd)

    def _launch(self, stdio: tuple[int, int, int]) -> None:
        self._control, theirs = sockets.pair(sockets.PACKETS)
        try:
            self.pid = self._fork(stdio, theirs)
        except OSError:
            self._control.close()
            raise
        finally:
            theirs.close()
        self._loop.watch(self._control.fileno(), self._told)

    def _fork(self, stdio: tuple[int, int, int], theirs: Socket) -> int:
        pid, pidfd = namespaces.fork_into(self.container.pidfd, self._cgroup)
        if pid == 0:
            changes = {"who": self.container.who, "argv": self._request["argv"], "tty": self._request["tty"]}
            process = self.container.spec["process"]
            init.run_exec(process, changes, theirs.fileno(), stdio, self.container.pidfd)
        os.close(pidfd)
        return pid

    def _make_stdio(self) -> tuple[int, int, int]:
        null = os.open(b"/dev/null", os.O_RDWR | os.O_CLOEXEC)
        if self._request["tty"]:
            return null, null, null
        chosen = [null, null, null]
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            if not self._request[name]:
                continue
            read, write = os.pipe2(os.O_CLOEXEC)
            theirs, ours = (read, write) if name == "stdin" else (write, read)
            os.set_blocking(ours, False)
            enlarge(ours, PIPE)
            chosen[number] = theirs
            self._names.append(name)
            self._fds.append(ours)
        userns.give((*self._fds,), self.container.spec["userns"])
        if null not in chosen:
            os.close(null)
        return chosen[0], chosen[1], chosen[2]

    def _told(self, _events: int) -> None:
        value, fds = wire.receive_packet(self._control)
        if value is not None:
            if "errno" in value:
                self._error = value
            for fd in fds:
                os.set_blocking(fd, False)
                self._names.append("terminal")
                self._fds.append(fd)
            return
        self._hang_up()
        if not self._error and self._answer is not None:
            answer, self._answer = self._answer, None
            fds, self._fds = self._fds, []
            answer.ok({"pid": self.pid, "streams": self._names}, tuple(fds))

    def _hang_up(self) -> None:
        if self._control.fileno() >= 0:
            self._loop.forget(self._control.fileno())
            self._control.close()

    def _close_fds(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def kill(self, number: int) -> None:
        """Signal its process group (it leads a session of its own); SIGKILL is for all it has started."""
        if number == signal.SIGKILL and self._cgroup != self.container.spec["birthplace"]:
            namespaces.write_number(self._cgroup + b"/cgroup.kill", 1)
            return
        try:
            signal_session(self.pid, number)
        except PermissionError as exc:
            raise from_errno(errno.EPERM, f"signal exec {self.id}") from exc

    def ended(self, status: int) -> None:
        """It was reaped: tell its connection."""
        self.container.remove_exec_cgroup(self._cgroup)
        while self._control.fileno() >= 0:
            self._told(0)
        self._close_fds()
        if self._answer is not None:
            error = self._error
            words = error.get("message", "exec ended before it could run")
            self._answer.fail(error.get("errno", errno.EIO), words, error.get("step", "init"))
            return
        self._tell_end(status)

    def _tell_end(self, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        code = 128 - code if code < 0 else code
        self.connection.send({"event": "exec", "container": self.container.id, "exec": self.id, "code": code})


def signal_session(pid: int, number: int) -> None:
    """To the process group of a session's leader, or to itself while it does not lead one; gone is fine."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
