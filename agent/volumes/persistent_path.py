"""PersistentVolumes that are a path of this node: kinds hostPath and local.

So also what rancher's local-path provisioner and static manifests make. A directory is used where it is:
nothing is mounted, formatted or ever deleted. With volumeMode Block the path is a block device, or a file
that a loop device stands for.

Source: Kubernetes API, core/v1 HostPathVolumeSource, LocalVolumeSource.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from agent.volumes import block, host_path
from agent.volumes.base import Claimed, Context, PreparedVolume, Unready
from agent.volumes.directories import make_directory
from agent.volumes.ownership import give_to_group

if TYPE_CHECKING:
    from agent.api.structs import Volume


async def set_up_host_path(context: Context, volume: Volume) -> PreparedVolume:
    """A hostPath of the pod itself, or one behind a claim.

    Raises:
        Unready: the path is not what its type says.
    """
    claimed = context.claimed
    if claimed is None:
        return await host_path.set_up(context, volume)
    source = claimed.volume.spec.host_path
    if source is None:
        raise Unready("not a hostPath")
    if claimed.block:
        raise Unready("a hostPath PersistentVolume cannot have volumeMode Block: use kind local")
    path = _path(context, source.path)
    remote = await host_path.check_where_it_is(context, path, source.type, shown=source.path)
    await asyncio.to_thread(make_directory, context.directory, mode=0o750)
    return PreparedVolume(name=volume.name, host_path=path, read_only=claimed.read_only, remote=remote)


async def set_up_local(context: Context, volume: Volume) -> PreparedVolume:
    """A local PersistentVolume; its directory becomes the fsGroup's.

    Raises:
        Unready: the path is no directory, or for volumeMode Block no device or file.
    """
    claimed = context.claimed
    source = claimed.volume.spec.local if claimed is not None else None
    if claimed is None or source is None:
        raise Unready("not a local PersistentVolume")
    path = _path(context, source.path)
    if claimed.block:
        device = await asyncio.to_thread(block.map_device, path, context.directory, shown=source.path)
        return PreparedVolume(
            name=volume.name, host_path=context.directory, device=device, read_only=claimed.read_only
        )
    await asyncio.to_thread(host_path.check, path, "Directory", shown=source.path)
    await _give(context, claimed, path)
    await asyncio.to_thread(make_directory, context.directory, mode=0o750)
    return PreparedVolume(name=volume.name, host_path=path, read_only=claimed.read_only)


async def _give(context: Context, claimed: Claimed, path: Path) -> None:
    group = context.fs_group
    if group is None or claimed.read_only:
        return
    policy = context.pod.spec.security_context.fs_group_change_policy
    await asyncio.to_thread(give_to_group, path, group, only_on_mismatch=policy == "OnRootMismatch")


def _path(context: Context, path: str) -> Path:
    if not path.startswith("/") or ".." in path.split("/"):
        raise Unready(f"path {path!r} of a PersistentVolume must be absolute and must not contain '..'")
    return context.host_root / path.lstrip("/")
