"""volumeMode Block: containers get a device node in place of a file system.

The volume's place is a link to the node, `<pod>/volumeDevices/kubernetes.io~<plugin>/<name>`, which is all
that is remembered. A regular file becomes a loop device, shared by the pods that use it and freed with the
last link to it; loop devices that somebody else made are left alone.
"""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import suppress
from pathlib import Path

from agent.volumes.base import Removal, Unready
from agent.volumes.directories import make_parents
from host import loop
from host.errors import HostError

_TAG = b"nodelet-volume"


def map_device(path: Path, link: Path, *, shown: str) -> Path:
    """Find the device node for a path and remember it as a link.

    Args:
        path: a block device, or a regular file.
        link: the volume's place.
        shown: the path for messages.

    Returns:
        the node, below /dev.

    Raises:
        Unready: neither a device nor a file, or it has no node.
    """
    try:
        facts = os.stat(path)
        if stat.S_ISBLK(facts.st_mode):
            node = node_of(facts.st_rdev)
        elif stat.S_ISREG(facts.st_mode):
            node = loop.attach(path, tag=_TAG)
        else:
            raise Unready(f"volumeMode Block: {shown} is neither a block device nor a file")
        make_parents(link)
        if link.is_symlink() and link.readlink() == node:
            return node
        link.unlink(missing_ok=True)
        link.symlink_to(node)
    except HostError as exc:
        raise Unready(f"volumeMode Block: {shown}: {exc}") from exc
    except OSError as exc:
        raise Unready(f"volumeMode Block: {shown}: {(exc.strerror or str(exc)).lower()}") from exc
    return node


def node_of(number: int) -> Path:
    """The node below /dev of a block device number; a path of another name may not be one by itself.

    Raises:
        Unready: there is none.
    """
    major, minor = os.major(number), os.minor(number)
    name = Path(f"/sys/dev/block/{major}:{minor}").resolve().name.replace("!", "/")
    node = Path("/dev") / name
    with suppress(OSError):
        facts = os.stat(node)
        if stat.S_ISBLK(facts.st_mode) and facts.st_rdev == number:
            return node
    raise Unready(f"block device {major}:{minor} has no node below /dev")


async def tear_down(removal: Removal) -> None:
    """Remove a volume's link, and free its loop device when no pod has it any more."""
    await asyncio.to_thread(_unmap, removal)


def _unmap(removal: Removal) -> None:
    link = removal.directory
    if not link.is_symlink():
        return
    node = link.readlink()
    link.unlink()
    others = (place for place in removal.pods_root.glob("*/volumeDevices/*/*") if place.is_symlink())
    if any(place.readlink() == node for place in others):
        return
    # After a reboot the node may be another file's: freed is only one that is tagged and has no link.
    found = loop.backing(node)
    if found is not None and found[0] == _TAG:
        loop.detach(node)
