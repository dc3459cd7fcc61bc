"""The runtime's command line, executed by a pod's supervisor without ever waiting for it.

`create` and `exec --detach` end when the container's process stands; that process has then lost its parent
and becomes the supervisor's child, which is a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER).
"""

from __future__ import annotations

import _signal as signal
import errno
import os

from cri.runtime import namespaces, record, sockets, wire
from cri.runtime.execution import signal_session
from cri.runtime.oci import bundle
from host.errors import from_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cri.runtime.loop import Loop
    from cri.runtime.sockets import Socket

_LIMIT_S = 60.0
"""A command that has not ended by then is killed, and has failed."""
_MAX_LOG = 1 << 20


class Commands:
    """Commands that are under way in one pod, and the processes that they leave to us."""

    def __init__(self, loop: Loop, by_pid: dict[int, Any]) -> None:
        """`by_pid`: where the supervisor looks up whom to tell of an ended child."""
        self._loop, self._by_pid = loop, by_pid
        self._running = 0
        self._count = 0
        self._orphans: dict[int, int] = {}

    def next_number(self) -> int:
        """For names of files that belong to one command."""
        self._count += 1
        return self._count

    def run(
        self,
        spec: dict[str, Any],
        words: list[bytes],
        on_end: Callable[[dict[str, Any] | None], None],
        *,
        stdio: tuple[int, int, int] | None = None,
        creation: bundle.Creation | None = None,
        after: tuple[bytes, ...] = (),
        birthplace: bytes | None = None,
    ) -> int:
        """Execute `<runtime> <words> <container id> <after>` in the container's bundle.

        Args:
            spec: the container, as `messages.container` writes it.
            on_end: called with None, or with errno, message and step of what went wrong.
            stdio: descriptors for 0, 1 and 2; None for the null device.
            creation: prepare the bundle first.
            birthplace: cgroup2 folder in place of the container's.

        Returns:
            the process id of the command, which leads a session.

        Raises:
            HostError: it could not be forked.
        """
        oci = spec["oci"]
        log = b"%s/command-%d.log" % (oci["bundle"], self.next_number())
        argv = [*oci["runtime"], b"--root", oci["root"], b"--log", log, b"--log-format", b"json"]
        argv += [*words, spec["id"].encode(), *after]
        control, theirs = sockets.pair(sockets.PACKETS)
        null = os.open(b"/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            pid, pidfd = namespaces.fork_into(None, oci["birthplace"] if birthplace is None else birthplace)
            if pid == 0:
                bundle.run(
                    spec["oci"]["bundle"],
                    spec["process"],
                    theirs.fileno(),
                    stdio or (null, null, null),
                    argv,
                    creation,
                )
        except OSError:
            control.close()
            raise
        finally:
            theirs.close()
            os.close(null)
        os.close(pidfd)

        def late() -> None:
            signal_session(pid, signal.SIGKILL)

        self._loop.alarm(late, _LIMIT_S)
        self._running += 1

        def ended(status: int) -> None:
            self._loop.alarm(late, None)
            self._running -= 1
            on_end(_failure(words[0], control, status, log))
            if not self._running:
                self._orphans.clear()

        self._by_pid[pid] = ended
        return pid

    def adopt(self, pid: int, ended: Callable[[int], None]) -> None:
        """Be told when a process that a command left behind has ended, or at once when it has already.

        Raises:
            HostError: ESRCH, it is not our child, so nobody would ever tell.
        """
        status = self._orphans.pop(pid, None)
        if status is not None:
            ended(status)
        elif record.parent(pid) == os.getpid():
            self._by_pid[pid] = ended
        else:
            raise from_errno(errno.ESRCH, f"process {pid} was not left to its supervisor")

    def orphan_ended(self, pid: int, status: int) -> None:
        """A child that nobody has adopted was reaped; a command under way may be about to name it."""
        if self._running:
            self._orphans[pid] = status


def _failure(command: bytes, control: Socket, status: int, log: bytes) -> dict[str, Any] | None:
    """What went wrong before the runtime was executed, or in it by its own words; None: nothing."""
    value, _ = wire.receive_packet(control)
    control.close()
    words = _last_words(log)
    if value is not None:
        return dict(value)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return None
    name = command.decode()
    if not words:
        words = f"OCI runtime {name}: " + (f"exit status {code}" if code > 0 else f"killed by signal {-code}")
    return {"errno": errno.EIO, "message": words, "step": name}


def _last_words(log: bytes) -> str:
    """The last error in a log of JSON lines, empty where there is none; the file is removed."""
    try:
        with open(log, "rb") as file:
            lines = file.read(_MAX_LOG).splitlines()
        os.unlink(log)
    except FileNotFoundError:
        return ""
    if not lines:
        return ""
    import json  # only a pod in which something went wrong pays for it

    found = ""
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level", "error") in ("error", "fatal", "panic"):
            found = str(entry.get("msg", "")) or found
    return found


def read_pid(path: bytes) -> int:
    """The process id in a pid file, which is removed.

    Raises:
        OSError: no such file.
        ValueError: no number in it.
    """
    with open(path, "rb") as file:
        pid = int(file.read(32))
    os.unlink(path)
    return pid
