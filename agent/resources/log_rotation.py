"""Container log rotation: the log is renamed, the runtime opens a new one, old ones are compressed and
dropped.

Renaming first and reopening after loses no line: until the runtime has reopened, it writes to the renamed
file. Names are kubelet's, so that log collectors know them: `0.log`, `0.log.<time>`, `0.log.<time>.gz`.

Source: pkg/kubelet/logs/container_log_manager.go (v1.37).
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from host.clocks import Clock

log = logging.getLogger(__name__)
CHECK_SECONDS = 10.0
"""containerLogMonitorInterval unless it is set."""
_TEMPORARY = ".tmp"


@dataclass(frozen=True)
class Tidy:
    """What to do with the rotated files of one log: compress these, delete those."""

    compress: tuple[Path, ...]
    delete: tuple[Path, ...]


def plan_tidy(log_file: Path, names: Iterable[str], *, max_files: int) -> Tidy:
    """Which rotated files to compress and which to delete. Pure.

    Args:
        names: file names in the log's folder.
        max_files: files to keep, the current one and the one about to be rotated included.
    """
    prefix = f"{log_file.name}."
    rotated = sorted(n for n in names if n.startswith(prefix) and not n.endswith(_TEMPORARY))
    left_over = [n for n in names if n.startswith(prefix) and n.endswith(_TEMPORARY)]
    surplus = max(0, len(rotated) - max(0, max_files - 2))
    keep = rotated[surplus:]
    return Tidy(
        compress=tuple(log_file.parent / n for n in keep if not n.endswith(".gz")),
        delete=tuple(log_file.parent / n for n in (*rotated[:surplus], *left_over)),
    )


class LogRotation:
    """Looks at every running container's log from time to time.

    Args:
        logs: ids and log paths of the running containers.
        reopen: makes the runtime open a container's log anew.
        failures: what `reopen` raises; OSError belongs to it, since files may be in the way as well.
        max_bytes, max_files: containerLogMaxSize and containerLogMaxFiles.
        interval: containerLogMonitorInterval, in seconds.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        logs: Callable[[], Iterable[tuple[str, Path]]],
        reopen: Callable[[str], Awaitable[None]],
        failures: tuple[type[Exception], ...],
        max_bytes: int,
        max_files: int,
        interval: float = CHECK_SECONDS,
    ) -> None:
        self._clock = clock
        self._logs = logs
        self._reopen = reopen
        self._failures = failures
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._interval = interval

    async def run(self) -> None:
        """Rotate until cancelled."""
        while True:
            await self._clock.sleep(self._interval)
            for container_id, path in list(self._logs()):
                try:
                    if _size(path) >= self._max_bytes:
                        await self.rotate(container_id, path)
                except self._failures as exc:
                    log.warning("log not rotated path=%s error=%s", path, exc)

    async def rotate(self, container_id: str, path: Path) -> None:
        """Rotate one log now. Raises OSError, or what `reopen` raises; then the old name is back."""
        await asyncio.to_thread(_tidy, path, self._max_files)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(self._clock.now()))
        rotated = path.with_name(f"{path.name}.{stamp}")
        if rotated.exists() or rotated.with_name(f"{rotated.name}.gz").exists():
            # The clock was put back: renaming and compressing would destroy what is there.
            raise FileExistsError(errno.EEXIST, "there is a rotated log of this second", str(rotated))
        _rename(path, rotated)
        try:
            await self._reopen(container_id)
        except self._failures:
            if _size(path) == 0:
                _rename(rotated, path)
            raise


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _rename(source: Path, target: Path) -> None:
    source.rename(target)


def _tidy(path: Path, max_files: int) -> None:
    """Compressing takes long, so this runs in a thread."""
    tidy = plan_tidy(path, (entry.name for entry in path.parent.iterdir()), max_files=max_files)
    for old in tidy.delete:
        old.unlink(missing_ok=True)
    for old in tidy.compress:
        _compress(old)


def _compress(path: Path) -> None:
    temporary = path.with_name(f"{path.name}.gz{_TEMPORARY}")
    with path.open("rb") as source, gzip.open(temporary, "wb", compresslevel=1) as target:
        shutil.copyfileobj(source, target, 1 << 20)
    temporary.chmod(0o640)
    temporary.rename(path.with_name(f"{path.name}.gz"))
    path.unlink()
