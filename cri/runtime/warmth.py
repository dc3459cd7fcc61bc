"""Keeping the kernel ready to move a process into a cgroup while the pod's network is being made.

Moving a process takes a lock for writing whose first taker waits for an RCU grace period, about 10 ms on a
small machine; whoever follows within some milliseconds does not (kernel/cgroup/cgroup.c
cgroup_threadgroup_rwsem, kernel/rcu/sync.c). So a new supervisor moves itself to where it already is, which
changes nothing, again and again until its first container comes or `LIMIT_S` is over. Container creation was
measured to become faster by just that grace period. Where it does not work it is left alone.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cri.runtime.loop import Loop

INTERVAL_S = 0.004
LIMIT_S = 0.25


def own_procs_file(tree: bytes, controller: bytes, membership: bytes) -> bytes:
    """The cgroup.procs of the cgroup that a process is in.

    Args:
        tree: the hierarchy's mount.
        controller: a v1 controller, or empty for cgroup2.
        membership: content of /proc/<pid>/cgroup.

    Returns:
        a path, empty where the hierarchy is not listed.
    """
    for line in membership.split(b"\n"):
        fields = line.split(b":", 2)
        if len(fields) == 3 and controller in fields[1].split(b","):
            return tree + fields[2].rstrip(b"/") + b"/cgroup.procs"
    return b""


class Warmth:
    """The repeated move of one supervisor; `stop` ends it."""

    def __init__(self, loop: Loop, tree: bytes, controller: bytes) -> None:
        self._loop, self._tree, self._controller = loop, tree, controller
        self._path = b""
        self._until = 0.0

    def start(self) -> None:
        """From now on, for a while."""
        if not self._tree:
            return
        with open("/proc/self/cgroup", "rb") as file:
            self._path = own_procs_file(self._tree, self._controller, file.read(1 << 16))
        self._until = time.monotonic() + LIMIT_S
        if self._path:
            self._loop.every(INTERVAL_S, self._move)

    def stop(self) -> None:
        """The real move comes now, or will not come soon."""
        self._loop.every(0, None)

    def _move(self) -> None:
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"0")
            finally:
                os.close(fd)
        except OSError:
            self.stop()
        if time.monotonic() > self._until:
            self.stop()
