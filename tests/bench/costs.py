"""What processes cost: memory in fair shares, and time of a CPU."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path


def processes() -> Iterator[tuple[int, str, str]]:
    """(pid, name, command line) of every process."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                name, line = (folder / "comm").read_text().strip(), (folder / "cmdline").read_text()
            except OSError:
                continue
            yield int(folder.name), name, line


def pss(pid: int) -> float:
    """Proportional share of memory, in megabytes (proc_pid_smaps(5)); 0 for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return 1024 * next(float(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1e6


def namespace(pid: int, kind: str) -> str:
    """Which namespace of a kind, such as mnt, a process is in; '' for one that is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def ticks(pid: int) -> int:
    """User and system time so far, in clock ticks; 0 for a process that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def busy(pids: Sequence[int], seconds: float) -> float:
    """Percent of one CPU that these processes take from now on for so long."""
    before = {pid: ticks(pid) for pid in pids}
    time.sleep(seconds)
    taken = sum(max(0, ticks(pid) - count) for pid, count in before.items())
    return 100 * taken / os.sysconf("SC_CLK_TCK") / seconds
