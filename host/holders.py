"""Who keeps a thing from being taken away: words for an error that somebody has to act on.

"Device or resource busy" names nobody. What the kernel knows of the holders is read here, after the fact, so
it may have changed: a holder that has gone meanwhile is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_STATES = {
    "D": "in uninterruptible sleep",
    "T": "stopped",
    "t": "traced",
    "Z": "a zombie that its parent does not reap",
}
"""proc_pid_stat(5); what runs or sleeps is not remarkable."""
_MOST = 5


def processes(pids: Iterable[int], *, proc: Path = Path("/proc")) -> str:
    """Processes by id, name, state and, where it is known, the kernel function they sleep in.

    For instance: 4711 (dd) in uninterruptible sleep in nfs_wait_bit_killable, 4712 (sh). Empty for none.
    """
    known = [words for pid in pids if (words := _process(pid, proc))]
    return _listed(known)


def mounts(folder: Path, *, mountinfo: Path = Path("/proc/self/mountinfo")) -> str:
    """Paths at or below a folder that something is mounted on in this mount namespace; empty for none."""
    text = mountinfo.read_text(encoding="utf-8", errors="surrogateescape")
    if _escaped(str(folder)) not in text:
        return ""
    points = [Path(_unescaped(line.split(" ")[4])) for line in text.splitlines()]
    return _listed([f"{point} is a mount point" for point in points if point.is_relative_to(folder)])


def lockers(path: Path, *, proc: Path = Path("/proc")) -> str:
    """Processes that hold a lock on a file (proc_locks(5)); empty where none is to be seen from here."""
    inode = os.stat(path).st_ino
    found = []
    for line in (proc / "locks").read_text(encoding="ascii").splitlines():
        fields = line.split()
        # number: kind mode type pid device:device:inode start end; "->" in front of one that waits
        if fields[1] != "->" and fields[5].endswith(f":{inode}") and fields[4].isdecimal():
            found.append(int(fields[4]))
    return processes(sorted(set(found)), proc=proc)


def _process(pid: int, proc: Path) -> str:
    try:
        name, _, rest = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")
        state = _STATES.get(rest.split()[0], "")
        where = (proc / str(pid) / "wchan").read_text().strip() if state else ""
    except OSError:
        return ""
    words = [f"{pid} ({name.partition('(')[2]})", state, f"in {where}" if where not in ("", "0") else ""]
    return " ".join(word for word in words if word).encode("unicode_escape").decode()


def _listed(words: list[str]) -> str:
    more = f" and {len(words) - _MOST} more" if len(words) > _MOST else ""
    return ", ".join(words[:_MOST]) + more


_ESCAPES = {"\\": "\\134", " ": "\\040", "\t": "\\011", "\n": "\\012"}
"""How mountinfo writes what would end a field (proc_pid_mountinfo(5))."""


def _escaped(path: str) -> str:
    return "".join(_ESCAPES.get(letter, letter) for letter in path)


def _unescaped(field: str) -> str:
    for letter, code in reversed(_ESCAPES.items()):
        field = field.replace(code, letter)
    return field
