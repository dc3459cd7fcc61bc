"""One container as its supervisor sees it: create, start, output, signals, exit.

    creating ──ready──▶ created ──start──▶ starting ──exec──▶ running
        │                  │                  │                  │
        ▼                  ▼                  ▼                  ▼
     (forgotten)        exited ◀───────────exited ◀───────────exited     exit is on disk before it is told

The stages follow from facts (`pid`, `started_at`, `exit`) and from which answer is still owed.
"""

from __future__ import annotations

import _signal as signal
import errno
import fcntl
import os
import struct
import termios
import time

from cri.runtime import crossing, init, namespaces, record, sockets, userns, wire
from cri.runtime.streams import PIPE, LogFile, Output, enlarge
from host import syscalls
from host.errors import HostError, from_errno
from host.failpoints import reach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cri.runtime.connection import Answer
    from cri.runtime.loop import Loop
    from cri.runtime.sockets import Socket

START = b"s"
_DRAIN_ROUNDS = 64


class Container:
    """Facts and descriptors of one container."""

    def __init__(self, loop: Loop, folder: bytes, spec: dict[str, Any]) -> None:
        """`folder`: the container's state folder; `spec`: what `messages.container` writes."""
        self._loop, self._folder = loop, folder
        self.spec = spec
        self.id: str = spec["id"]
        self.pid = 0
        self.pidfd = -1
        self.who: dict[str, Any] = {}
        self.created_at = 0
        self.started_at = 0
        self.exit: dict[str, Any] | None = None
        self._error: dict[str, Any] | None = None
        self._creating: Answer | None = None
        self._starting: Answer | None = None
        self._control: Socket | None = None
        self._log = LogFile(spec["log_path"])
        self._outputs: dict[str, Output] = {}
        self._stdin = -1
        self._master = -1
        self._execs = 0
        self._left: list[bytes] = []
        """Cgroups of ended execs that something still lives in."""

    def facts(self) -> dict[str, Any]:
        """What `messages.container_facts` reads."""
        return {
            "id": self.id,
            "pid": 0 if self.exit else self.pid,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "exit": self.exit,
            "dropped": self._log.dropped,
        }

    def create(self, answer: Answer, pid_namespace: int | None, owner: int) -> None:
        """Fork the init; the answer comes when its root is ready.

        Args:
            pid_namespace: as for `namespaces.fork_into`.
            owner: the pod's user namespace, or -1.

        Raises:
            HostError: nothing was started.
        """
        self._log.open()
        stdio, ours = self._make_stdio()
        control, theirs = sockets.pair(sockets.PACKETS)
        idmaps: list[int] = []
        try:
            idmaps = userns.open_all(self.spec["idmaps"], owner)
            if owner >= 0:
                pid, pidfd = crossing.fork(self.spec, pid_namespace, theirs.fileno(), stdio, idmaps)
            else:
                pid, pidfd = namespaces.fork_into(pid_namespace, self.spec["birthplace"])
            if pid == 0:
                init.run_container(self.spec["process"], theirs.fileno(), stdio, idmaps)
        except OSError:
            for fd in ours.values():
                os.close(fd)
            control.close()
            raise
        finally:
            for fd in {*stdio, *idmaps}:
                os.close(fd)
            theirs.close()
        self.pid, self.pidfd = pid, pidfd
        self._creating, self._control = answer, control
        self._loop.watch(control.fileno(), self._told)
        self._take_streams(ours)

    def _take_streams(self, ours: dict[str, int]) -> None:
        """Our ends of the pipes: one to write to, the others into the log."""
        self._stdin = ours.pop("stdin", -1)
        for name, fd in ours.items():
            self._outputs[name] = Output(self._loop, fd, name.encode(), self._log)

    def _make_stdio(self) -> tuple[tuple[int, int, int], dict[str, int]]:
        """(descriptors for the child, our ends by name); with a terminal the child brings its own."""
        null = os.open(b"/dev/null", os.O_RDWR | os.O_CLOEXEC)
        if self.spec["tty"]:
            return (null, null, null), {}
        ours = {}
        stdin = null
        if self.spec["stdin"]:
            stdin, ours["stdin"] = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(ours["stdin"], False)
        ours["stdout"], stdout = os.pipe2(os.O_CLOEXEC)
        ours["stderr"], stderr = os.pipe2(os.O_CLOEXEC)
        for name in ("stdout", "stderr"):
            os.set_blocking(ours[name], False)
            enlarge(ours[name], PIPE)
        userns.give((*ours.values(),), self.spec["userns"])
        if stdin != null:
            os.close(null)
        return (stdin, stdout, stderr), ours

    def start(self, answer: Answer) -> None:
        """Release the waiting init; the answer comes when exec succeeded or failed."""
        if self._control is None or self._starting is not None or self.exit is not None or self._creating:
            raise from_errno(errno.EALREADY, f"start container {self.id}: it was started before")
        self._starting = answer
        try:
            self._control.send(START)
        except OSError as exc:
            self._starting = None
            raise from_errno(exc.errno or errno.EIO, f"start container {self.id}: its init is gone") from exc
        reach("supervisor.start_sent")

    def _told(self, _events: int) -> None:
        """Something from the init: ready, an error, or the end of the socket (exec, or death)."""
        if self._control is None:
            return
        value, fds = wire.receive_packet(self._control)
        if value is not None:
            if "errno" in value:
                self._error = value
            elif self._creating is not None:
                self._ready(value, fds)
            return
        self._hang_up()
        if self._starting is not None and self._error is None:
            self.started_at = time.time_ns()
            answer, self._starting = self._starting, None
            answer.ok(self.facts())
            self._note_started()

    def _hang_up(self) -> None:
        if self._control is not None:
            self._loop.forget(self._control.fileno())
            self._control.close()
            self._control = None

    def _ready(self, who: dict[str, Any], fds: list[int]) -> None:
        self.who = who
        self.created_at = time.time_ns()
        if fds:
            self._master = fds[0]
            os.set_blocking(self._master, False)
            self._outputs["stdout"] = Output(self._loop, os.dup(self._master), b"stdout", self._log)
        answer, self._creating = self._creating, None
        if answer is not None:
            answer.ok(self.facts())

    def _note_started(self) -> None:
        """For a client that finds this supervisor dead: which process it was, and since when."""
        facts = {"pid": self.pid, "start_time": record.start_time(self.pid), "started_at": self.started_at}
        reach("supervisor.container_executed")
        self._write("started", facts)

    def ended(self, status: int) -> bool:
        """The init was reaped. Writes the exit down; whether the container is still to be remembered."""
        if self._creating is not None and self.spec["userns"]:
            self.kill()  # the builder of its root may live, and would keep the socket open
        while self._control is not None:
            self._told(0)
        error = self._error or {}
        if self._creating is not None:
            self._fail(self._creating, error, "init ended while it prepared the container")
            self.close()
            return False
        code = os.waitstatus_to_exitcode(status)
        self._finish_output()
        self.exit = {
            "code": 128 - code if code < 0 else code,
            "signal": max(-code, 0),
            "finished_at": time.time_ns(),
            "oom": code != 0 and self._oom_kills() > 0,
            "error": error.get("message", ""),
            "created_at": self.created_at,
            "started_at": self.started_at,
        }
        if self.spec["pid_mode"] != "container":
            self.kill()
        reach("supervisor.container_reaped")
        self._write("exit", self.exit)
        reach("supervisor.exit_recorded")
        if self._starting is not None:
            answer, self._starting = self._starting, None
            self._fail(answer, error, "init ended before exec")
        return True

    def _fail(self, answer: Answer, error: dict[str, Any], otherwise: str) -> None:
        answer.fail(error.get("errno", errno.EIO), error.get("message", otherwise), error.get("step", "init"))

    def _write(self, name: str, facts: dict[str, Any]) -> None:
        """A full disk must not stop us: the facts are then told all the same, and kept in memory."""
        try:
            record.write(self._folder, name, facts)
        except OSError as exc:
            complain(f"record {name} of container {self.id}: {exc}")

    def _finish_output(self) -> None:
        """What the container wrote before it ended is in the log before its exit is told."""
        for output in list(self._outputs.values()):
            for _ in range(_DRAIN_ROUNDS):
                if not output.pump():
                    break

    def _oom_kills(self) -> int:
        try:
            with open(self.spec["oom_file"], "rb") as file:
                for line in file.read(1 << 16).split(b"\n"):
                    if line.startswith(b"oom_kill "):
                        return int(line.split()[1])
        except OSError:
            return 0
        return 0

    def signal(self, number: int) -> None:
        """To the first process; nothing once it has ended."""
        if self.exit is None and self.pidfd >= 0:
            try:
                syscalls.pidfd_send_signal(self.pidfd, number)
            except HostError as exc:
                if exc.errno != errno.ESRCH:
                    raise

    def kill(self) -> None:
        """SIGKILL every process of the container's cgroup, and the first one in any case."""
        if self.spec["kill_file"]:
            try:
                namespaces.write_number(self.spec["kill_file"], 1)
            except HostError:
                kill_listed(self.spec["procs_file"])
        else:
            kill_listed(self.spec["procs_file"])
        self.signal(signal.SIGKILL)

    def make_exec_cgroup(self) -> bytes:
        """A cgroup below the container's that can be killed alone (cgroup.kill, kernel 5.14); else its own.

        It gets no controllers: the kernel allows processes beside it only so, and the limits above it hold.
        """
        own: bytes = self.spec["birthplace"]
        if not own:
            return own
        self._execs += 1
        path = own + b"/exec-%d" % self._execs
        try:
            os.mkdir(path, 0o755)
        except OSError:
            return own
        if not os.access(path + b"/cgroup.kill", os.W_OK):
            os.rmdir(path)
            return own
        return path

    def remove_exec_cgroup(self, path: bytes) -> None:
        """Also those of earlier execs that were still lived in; the last go with the container."""
        if path != self.spec["birthplace"]:
            self._left.append(path)
        self._left = [path for path in self._left if not _remove_cgroup(path)]

    def attach(self, wanted: dict[str, Any]) -> tuple[list[str], tuple[int, ...]]:
        """(names, descriptors) of the streams asked for that exist.

        A container that has ended meanwhile is refused: its output is in the log, and a client that hears
        an error looks there (kubectl run -i).
        """
        if self.exit is not None:
            raise from_errno(errno.ESRCH, f"attach to container {self.id}: it is not running")
        fds: dict[str, int] = {}
        if wanted["stdin"]:
            source = self._master if self.spec["tty"] else self._stdin
            if source >= 0:
                fds["stdin"] = os.dup(source)
            if self.spec["stdin_once"] and not self.spec["tty"] and self._stdin >= 0:
                os.close(self._stdin)
                self._stdin = -1
        for name in ("stdout", "stderr"):
            if wanted[name] and name in self._outputs:
                fds[name] = self._outputs[name].listen()
        return list(fds), tuple(fds.values())

    def resize(self, width: int, height: int) -> None:
        """Of a tty container's terminal."""
        if self._master < 0:
            raise from_errno(errno.ENOTTY, f"resize container {self.id}")
        set_window_size(self._master, width, height)

    def reopen_log(self) -> None:
        """After rotation."""
        self._log.open()

    def close(self) -> None:
        """Let go of every descriptor; the processes must be gone."""
        self._hang_up()
        for output in self._outputs.values():
            output.close()
        self._log.close()
        for fd in (self.pidfd, self._stdin, self._master):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self._stdin = self._master = -1


def complain(words: str) -> None:
    """To the sandbox's file of errors; where that is on a full disk, nobody can be told."""
    try:
        os.write(2, f"{words}\n".encode())
    except OSError:
        return


def _remove_cgroup(path: bytes) -> bool:
    try:
        os.rmdir(path)
    except OSError as exc:
        return exc.errno == errno.ENOENT
    return True


def kill_listed(procs_file: bytes) -> None:
    """SIGKILL what a cgroup.procs lists, again until nobody new appears."""
    done: set[int] = set()
    while True:
        fresh: set[int] = set()
        try:
            with open(procs_file, "rb") as file:
                fresh.update(int(word) for word in file.read(1 << 20).split())
        except OSError:
            return
        fresh -= done
        if not fresh:
            return
        for pid in fresh:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        done |= fresh


def set_window_size(master: int, width: int, height: int) -> None:
    """TIOCSWINSZ."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
