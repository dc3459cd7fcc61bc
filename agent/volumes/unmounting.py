"""Takes mounts away: the busy ones are named with who holds them, the ones of a dead server let go.

What happens to one mount (`verdict`):

    a file system of this machine   umount(2); while it is busy that is said and tried again. Memory, and
                                    binds of something that stays where it is, lose nothing by MNT_DETACH:
                                    after `PATIENCE` seconds they are let go so that the pod can end.
    another machine's               umount in a child; no answer in time: MNT_DETACH at once, in a child
                                    too. Busy: as above.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from agent.volumes.children import Children
from agent.volumes.mounts import Mounted, Mounter
from host.clocks import Clock
from host.errors import Busy, HostError, NotFound, TimedOut
from host.processes import ProcessFailed

PATIENCE = 60.0
"""Seconds for which a busy mount is only reported."""
REMOTE_LIMIT = 10.0
"""Seconds a file server has to answer an umount."""
_MEMORY = frozenset(("tmpfs", "ramfs", "hugetlbfs"))


class Unmounter:
    """Unmounts for the volume manager; knows since when a mount has been busy.

    Args:
        mounter: the mount table.
        children: runs umount(8) on other machines' file systems.
        clock: for `PATIENCE`.
    """

    def __init__(self, *, mounter: Mounter, children: Children, clock: Clock) -> None:
        self._mounter = mounter
        self._children = children
        self._clock = clock
        self._busy_since: dict[Path, float] = {}

    async def clear(self, path: Path, *, binds: bool = False) -> None:
        """Unmount everything at or below a path.

        Args:
            binds: what is mounted there are binds of volumes, so nothing is lost when they are let go.

        Raises:
            HostError: mounts are left; the message names each and its holders. The others are gone.
        """
        failures: list[str] = []
        for mounted in await asyncio.to_thread(self._mounter.table, path):
            try:
                await self._unmount(mounted, binds=binds)
            except NotFound:
                pass
            except HostError as exc:
                if exc.errno != errno.EINVAL:  # it is no mount point any more
                    failures.append(await asyncio.to_thread(_words, mounted, exc))
                    continue
            self._busy_since.pop(mounted.point, None)
        if failures:
            raise Busy(errno.EBUSY, "; ".join(failures))

    async def _unmount(self, mounted: Mounted, *, binds: bool) -> None:
        since = self._busy_since.setdefault(mounted.point, self._clock.monotonic())
        lazy = verdict(mounted, busy_for=self._clock.monotonic() - since, binds=binds) == "let go"
        if not mounted.remote:
            await asyncio.to_thread(self._mounter.unmount, mounted.point, lazy=lazy)
            return
        try:
            await self._child(mounted, lazy=lazy)
        except TimedOut:
            await self._child(mounted, lazy=True)

    async def _child(self, mounted: Mounted, *, lazy: bool) -> None:
        """umount(8). `-c`, `-i`: neither the path nor umount.nfs asks a server that may be dead."""
        argv = ["umount", "-c", "-i", *(["-l"] if lazy else []), "--", str(mounted.point)]
        try:
            await self._children.run(" ".join(argv), argv, limit=REMOTE_LIMIT)
        except ProcessFailed as exc:
            raise Busy(errno.EBUSY, f"umount {str(mounted.point)!r}", exc.stderr) from exc


def verdict(mounted: Mounted, *, busy_for: float, binds: bool) -> str:
    """What to do about a mount that was busy that long: "unmount" it, or "let go" of it lazily."""
    harmless = binds or mounted.remote or mounted.kind in _MEMORY
    return "let go" if harmless and busy_for >= PATIENCE else "unmount"


def _words(mounted: Mounted, exc: HostError) -> str:
    holders = ", ".join(f"{pid} ({name})" for pid, name in users_of(mounted.point))
    return f"{exc} (in use by: {holders or 'nobody that can be seen'})"


def users_of(path: Path, *, proc: Path = Path("/proc")) -> list[tuple[int, str]]:
    """Who keeps a mount busy: process ids and names of those with their root, working directory, program or
    an open file below a path. Only links of /proc are read, no file system is asked.
    """
    prefix = f"{path}/"
    found = []
    for entry in proc.iterdir():
        if entry.name.isdecimal() and any(f"{target}/".startswith(prefix) for target in _links_of(entry)):
            name = "?"
            with suppress(OSError):
                name = (entry / "comm").read_text(errors="replace").strip()
            found.append((int(entry.name), name))
    return sorted(found)


def _links_of(entry: Path) -> Iterable[str]:
    links = [entry / "cwd", entry / "root", entry / "exe"]
    with suppress(OSError):
        links.extend((entry / "fd").iterdir())
    for link in links:
        with suppress(OSError):
            yield os.readlink(link)
