"""A process that does nothing: it holds a systemd scope from before a container's first process until the
container's exit is on record.

systemd starts no scope without a process and removes one, with the counters in it, as soon as it is empty; a
container's first process is born in its cgroup, and what the kernel has counted is read after its end. The
holder is a child of the pod's supervisor, shares all of its memory, and ends with it.
"""

from __future__ import annotations

import _signal as signal
import os

from cri.runtime import namespaces
from host import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def fork() -> int:
    """Its process id; it is in this process's cgroup until systemd moves it. Raises HostError."""
    pid, pidfd = namespaces.fork_into(None, b"")
    if pid == 0:
        try:
            _hold()
        finally:
            os._exit(1)
    os.close(pidfd)
    return pid


def let_go(pid: int) -> None:
    """End one that has not been reaped yet; nothing when it has ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _hold() -> NoReturn:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # `systemctl stop` of the scope is not to wait for us
    os.setsid()
    syscalls.set_process_name(b"scope-holder")
    _protect()
    syscalls.close_range(0)
    while True:
        signal.pause()


def _protect() -> None:
    """With memory.oom.group the kernel kills a whole cgroup, but not whoever has -1000 (cgroup-v2.rst)."""
    try:
        fd = os.open(b"/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"-1000")
        finally:
            os.close(fd)
    except PermissionError:
        return  # without CAP_SYS_RESOURCE such a container's end may not be told from any other
