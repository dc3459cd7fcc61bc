"""Takes a pod's volumes away, from what the disk and the mount table say alone.

The order is that of set-up turned round: binds of subPaths, each volume by its plugin, whatever else is
mounted in the pod's directory; and only when nothing is mounted there any more is anything deleted.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from agent.volumes.base import Removal
from agent.volumes.plugins import plugin_at
from agent.volumes.unmounting import Unmounter


async def remove_pod(directory: Path, *, unmounter: Unmounter) -> None:
    """Unmount and delete everything of a pod; a pod that has nothing is fine.

    Args:
        directory: the pod's, `<root>/pods/<uid>`.
        unmounter: takes the mounts away.

    Raises:
        OSError: something is left; the message names the mount and who uses it. No data was deleted.
    """
    await unmounter.clear(directory / "volume-subpaths", binds=True)
    for place in await asyncio.to_thread(_places, directory):
        plugin = plugin_at(place.parent.name)
        if plugin is not None and plugin.tear_down is not None:
            await plugin.tear_down(Removal(directory=place, pods_root=directory.parent))
    await unmounter.clear(directory)
    await asyncio.to_thread(_delete, directory)


def _places(directory: Path) -> list[Path]:
    return [*directory.glob("volumes/*/*"), *directory.glob("volumeDevices/*/*")]


def _delete(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
