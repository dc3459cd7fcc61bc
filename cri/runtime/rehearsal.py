"""Running in the spawner, before the first fork, what every supervisor and init will run.

The interpreter writes into code objects, types and allocator pools when they are first used, each time into a
page that a forked process shares until then: 4 KB more for each of them, and 5 us. What has run here is
written already. Nothing outside of this process changes.
"""

from __future__ import annotations

import os
import signal
import socket

from cri.runtime import record, wire
from cri.runtime.log import LineLog
from cri.runtime.loop import IN
from cri.runtime.supervisor import Supervisor
from host import syscalls
from host.errors import HostError

_TIMES = 12  # from the eighth call on a function is specialised (PEP 659)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_NOWHERE = 1 << 20  # no process has so many descriptors


def rehearse() -> None:
    """Requests and answers, records, log lines, signals and system calls, all without effect."""
    ours, theirs = socket.socketpair()
    subject = Supervisor(b"", {})
    connection = subject.connect(theirs)
    lines, frames = LineLog(b"stdout"), wire.Frames()
    sample = {"a": [None, True, -1, b"bytes", "text"], "b": {"c": [[b"name", b"value"]] * 8}}
    for number in range(_TIMES):
        wire.send_blocking(ours, {"id": number, "op": "snapshot", "sample": sample})
        connection.ready(IN)
        frames.feed(*wire.receive(ours))
        lines.feed(b"a line\nand another\n", number)
        record.start_time(os.getpid())
        for name in _SIGNALS:
            signal.signal(name, signal.getsignal(name))
        syscalls.close_range(_NOWHERE)
        os.close(syscalls.openat2(syscalls.AT_FDCWD, b"/", flags=os.O_PATH))
        try:
            syscalls.openat2(syscalls.AT_FDCWD, b"/no such file", flags=os.O_PATH)
        except HostError:
            continue
    connection.close()
    ours.close()
