"""Out-of-memory kills for want of the machine's memory, told as the node's event SystemOOM.

They come from the kernel's log, a record a read (Documentation/ABI/testing/dev-kmsg). A kill for a cgroup's
own limit is none of them: the container's status says OOMKilled.

Source: pkg/kubelet/oom/oom_watcher_linux.go (v1.37); mm/oom_kill.c, dump_oom_summary (since 5.0).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)
KMSG = Path("/dev/kmsg")
_RECORD = 8192
"""No record is longer (CONSOLE_EXT_LOG_MAX)."""
_SUMMARY = re.compile(r"oom-kill:constraint=(\w+),.*,task=(.*),pid=(\d+),uid=\d+$")


@dataclass(frozen=True)
class Victim:
    """A process that the kernel killed."""

    name: str
    pid: int


def victims(text: str) -> Iterator[Victim]:
    """The processes that died for want of the machine's memory, by the lines of the kernel's log. Pure."""
    for line in text.splitlines():
        found = _SUMMARY.search(line)
        if found is not None and found[1] != "CONSTRAINT_MEMCG":
            yield Victim(name=found[2], pid=int(found[3]))


class OomWatcher:
    """Follows the kernel's log from now on. `run()` until cancelled.

    Args:
        say: records a warning about the node: reason and message.
    """

    def __init__(self, *, say: Callable[[str, str], None], path: Path = KMSG) -> None:
        self._say = say
        self._path = path

    async def run(self) -> None:
        """Tell of kills until cancelled; without rights to the log, nothing is told."""
        try:
            kmsg = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            log.warning("out-of-memory kills of the machine are not told path=%s error=%s", self._path, exc)
            await asyncio.Event().wait()
            return
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        try:
            with suppress(OSError):  # a pipe, in tests
                os.lseek(kmsg, 0, os.SEEK_END)
            loop.add_reader(kmsg, readable.set)
            while True:
                await readable.wait()
                readable.clear()
                self._take(kmsg)
        finally:
            loop.remove_reader(kmsg)
            os.close(kmsg)

    def _take(self, kmsg: int) -> None:
        while True:
            try:
                record = os.read(kmsg, _RECORD)
            except BlockingIOError:
                return
            except BrokenPipeError:
                continue  # records were overwritten before we came to them: the next one follows
            if not record:
                return
            for victim in victims(record.decode(errors="replace")):
                text = f"System OOM encountered, victim process: {victim.name}, pid: {victim.pid}"
                self._say("SystemOOM", text)
