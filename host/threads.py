"""Starting a thread on a machine that may be out of processes; `threading` says so with a RuntimeError."""

from __future__ import annotations

import errno
import threading

from host.errors import from_errno


def start(thread: threading.Thread) -> None:
    """Start it.

    Raises:
        Busy: no process is to be had (pids.max, RLIMIT_NPROC, threads-max); a later try may succeed.
    """
    try:
        thread.start()
    except RuntimeError as exc:
        raise from_errno(errno.EAGAIN, f"start a thread for {thread.name}", "out of processes") from exc
