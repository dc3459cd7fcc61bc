"""Whole folders, apart from host.files because of what shutil imports."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from host import holders
from host.errors import Busy, from_errno


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it; a missing one is fine. Links are not followed.

    Raises:
        Busy: something is mounted at or below it, which is named: its files are somebody else's, and nothing
            is removed.
        HostError: names the file that cannot be removed.
    """
    if mounted := holders.mounts(folder):
        raise Busy(errno.EBUSY, f"remove {folder}", mounted)
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise from_errno(exc.errno or errno.EIO, f"remove {folder}", str(exc.filename or "")) from exc
