"""NFS volumes: mounted by mount.nfs, which a child process runs under a time limit.

Whether it is mounted is read from the mount table, and nothing here looks into a mounted volume: when the
server is dead, only the pod's own containers wait for it.

Source: Kubernetes API, core/v1 NFSVolumeSource; mount.nfs(8).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from agent.volumes.base import Context, PreparedVolume, Unready
from agent.volumes.directories import make_directory
from host.errors import NotFound, TimedOut
from host.processes import ProcessFailed

if TYPE_CHECKING:
    from agent.api.structs import NFSVolumeSource, Volume

_SERVER = re.compile(r"[A-Za-z0-9:%\[][A-Za-z0-9._:%\[\]-]*")
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]+")


async def set_up(context: Context, volume: Volume) -> PreparedVolume:
    """Mount the export, unless it is mounted.

    Raises:
        Unready: not a usable server, path or option; the server refused or did not answer; no mount.nfs.
    """
    claimed = context.claimed
    source = volume.nfs if claimed is None else claimed.volume.spec.nfs
    if source is None:
        raise Unready("not an NFS volume")
    if claimed is not None and claimed.block:
        raise Unready("an NFS volume cannot have volumeMode Block")
    read_only = source.read_only or (claimed is not None and claimed.read_only)
    arguments = mount_arguments(
        source, options=claimed.volume.spec.mount_options if claimed is not None else (), read_only=read_only
    )
    ready = PreparedVolume(
        name=volume.name, host_path=context.directory, read_only=read_only, remote=True, changed=True
    )
    table = await asyncio.to_thread(context.mounter.table, context.directory)
    if any(mounted.point == context.directory for mounted in table):
        return ready
    await asyncio.to_thread(make_directory, context.directory, mode=0o750)
    argv = ["mount.nfs", arguments[0], str(context.directory), *arguments[1:]]
    try:
        await context.children.run(f"mount {context.directory}", argv)
    except NotFound as exc:
        raise Unready("mount.nfs is not on this node: install nfs-common (or nfs-utils)") from exc
    except ProcessFailed as exc:
        raise Unready(f"mounting {arguments[0]} failed: {exc.stderr or exc}") from exc
    except TimedOut as exc:
        raise Unready(f"NFS server {source.server} does not answer: mount of {arguments[0]}: {exc}") from exc
    return ready


def mount_arguments(source: NFSVolumeSource, *, options: Iterable[str], read_only: bool) -> tuple[str, ...]:
    """What mount.nfs is told: the export, and its options.

    Args:
        source: server and path.
        options: mountOptions of the PersistentVolume, each perhaps several with commas.
        read_only: adds "ro".

    Raises:
        Unready: a server, path or option that mount.nfs would take for something else.
    """
    if _SERVER.fullmatch(source.server) is None:
        raise Unready(f"nfs.server {source.server[:80]!r} is neither a host name nor an address")
    if not source.path.startswith("/") or _PRINTABLE.fullmatch(source.path) is None:
        raise Unready(f"nfs.path {source.path[:80]!r} must be absolute and without control characters")
    for option in options:
        if _PRINTABLE.fullmatch(option) is None or option.startswith("-"):
            raise Unready(f"mountOptions: {option[:80]!r} is no mount option")
    server = source.server
    if ":" in server and not server.startswith("["):
        server = f"[{server}]"
    chosen = sorted({*options, *(("ro",) if read_only else ())})
    return (f"{server}:{source.path}", *(("-o", ",".join(chosen)) if chosen else ()))
