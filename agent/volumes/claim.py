"""persistentVolumeClaim and generic ephemeral volumes whose PersistentVolume is a path of this node.

Covers hostPath and local PersistentVolumes, and so what rancher's local-path provisioner and static manifests
make. The path is used where it is: nothing is mounted, formatted or ever deleted here; reclaiming is the
provisioner's work. NFS and CSI volumes are refused by name.

Source: Kubernetes API, core/v1 PersistentVolumeSpec, LocalVolumeSource.
"""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from agent.volumes import host_path
from agent.volumes.base import Context, PreparedVolume, Unready

if TYPE_CHECKING:
    from agent.api.structs import PersistentVolume, PersistentVolumeClaim, Volume


async def set_up(context: Context, volume: Volume) -> PreparedVolume:
    """Find the bound PersistentVolume and check its path.

    Raises:
        Unready: not there, not bound, or of a kind that this node does not support.
    """
    source = volume.persistent_volume_claim
    name = source.claim_name if source is not None else f"{context.pod.metadata.name}-{volume.name}"
    claim, found = await _bound(context, name, owned=source is None)
    spec = found.spec
    if spec.volume_mode == "Block":
        raise Unready("volumeMode Block is not supported by this node")
    read_only = (source is not None and source.read_only) or claim.spec.access_modes == ("ReadOnlyMany",)
    if spec.host_path is not None:
        path = _path(context, spec.host_path.path)
        await asyncio.to_thread(host_path.check, path, spec.host_path.type, shown=spec.host_path.path)
    elif spec.local is not None:
        path = _path(context, spec.local.path)
        await asyncio.to_thread(host_path.check, path, "Directory", shown=spec.local.path)
        if context.fs_group is not None and not read_only:
            policy = context.pod.spec.security_context.fs_group_change_policy
            await asyncio.to_thread(give, path, context.fs_group, only_on_mismatch=policy == "OnRootMismatch")
    else:
        raise Unready(f"persistentvolume {found.metadata.name!r} is of a kind this node does not support")
    return PreparedVolume(name=volume.name, host_path=path, read_only=read_only)


def _path(context: Context, path: str) -> Path:
    if not path.startswith("/") or ".." in path.split("/"):
        raise Unready(f"path {path!r} of a PersistentVolume must be absolute and must not contain '..'")
    return context.host_root / path.lstrip("/")


async def _bound(
    context: Context, name: str, *, owned: bool
) -> tuple[PersistentVolumeClaim, PersistentVolume]:
    """The claim and the volume that are bound to each other."""
    claims = context.claims
    if claims is None:
        raise Unready("persistentVolumeClaim volumes need an API server, this node stands alone")
    namespace = context.pod.metadata.namespace
    claim = await claims.get_claim(namespace, name)
    if claim is None:
        raise Unready(f'persistentvolumeclaim "{name}" not found')
    owners = {owner.uid for owner in claim.metadata.owner_references if owner.controller}
    if owned and context.pod.metadata.uid not in owners:
        raise Unready(f'PVC "{name}" was not created for this pod: delete the claim or rename the volume')
    if claim.status.phase != "Bound" or not claim.spec.volume_name:
        raise Unready(f'PVC "{namespace}/{name}" is not bound')
    found = await claims.get_persistent_volume(claim.spec.volume_name)
    if found is None:
        raise Unready(f'persistentvolume "{claim.spec.volume_name}" not found')
    return claim, found


def give(root: Path, group: int, *, only_on_mismatch: bool) -> None:
    """Make everything below a directory the group's, readable and writable (fsGroup); links are not followed.

    Args:
        root: the volume.
        group: the pod's fsGroup.
        only_on_mismatch: do nothing when the root itself is right already (fsGroupChangePolicy).
    """
    top = root.stat()
    if only_on_mismatch and top.st_gid == group and top.st_mode & 0o2770 == 0o2770:
        return
    for _, _, files, folder in os.fwalk(root):
        for name in files:
            facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
            os.chown(name, -1, group, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISREG(facts.st_mode):
                _widen(name, folder, facts.st_ino)
        os.fchown(folder, -1, group)
        os.fchmod(folder, stat.S_IMODE(os.fstat(folder).st_mode) | stat.S_ISGID | stat.S_IRWXG)


def _widen(name: str, folder: int, inode: int) -> None:
    """Let the group read and write a file, unless it is another one by now."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return
    try:
        facts = os.fstat(fd)
        if facts.st_ino == inode:
            os.fchmod(fd, stat.S_IMODE(facts.st_mode) | stat.S_IRGRP | stat.S_IWGRP)
    finally:
        os.close(fd)
