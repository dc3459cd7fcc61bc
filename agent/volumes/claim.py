"""persistentVolumeClaim and generic ephemeral volumes: which PersistentVolume stands behind them.

The volume itself is then set up by the plugin of the PersistentVolume's kind, which finds all of this in
`Context.claimed`. Nothing is provisioned, reclaimed or ever deleted here: that is the controllers' work.

Source: Kubernetes API, core/v1 PersistentVolumeSpec; access modes: KEP-2485.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from agent.volumes.base import Claimed, Claims, Unready

if TYPE_CHECKING:
    from agent.api.structs import Pod, Volume

ONE_POD = "ReadWriteOncePod"


async def find(claims: Claims | None, pod: Pod, volume: Volume) -> Claimed | None:
    """What a volume's claim is bound to; None for a volume that is no claim.

    Raises:
        Unready: no such claim or volume, not bound to each other, or not this pod's.
    """
    source = volume.persistent_volume_claim
    if source is None and volume.ephemeral is None:
        return None
    if claims is None:
        raise Unready("persistentVolumeClaim volumes need an API server, this node stands alone")
    namespace = pod.metadata.namespace
    name = source.claim_name if source is not None else f"{pod.metadata.name}-{volume.name}"
    claim = await claims.get_claim(namespace, name)
    if claim is None:
        raise Unready(f'persistentvolumeclaim "{name}" not found')
    owners = {owner.uid for owner in claim.metadata.owner_references if owner.controller}
    if source is None and pod.metadata.uid not in owners:
        raise Unready(
            f'PVC "{name}" was not created for this pod (the pod is not its owner): '
            "delete the claim or rename the volume"
        )
    if claim.status.phase != "Bound" or not claim.spec.volume_name:
        raise Unready(f'PVC "{namespace}/{name}" is not bound')
    found = await claims.get_persistent_volume(claim.spec.volume_name)
    if found is None:
        raise Unready(f'persistentvolume "{claim.spec.volume_name}" not found')
    bound = found.spec.claim_ref
    if bound is not None and bound.uid and bound.uid != claim.metadata.uid:
        raise Unready(f'PersistentVolume "{found.metadata.name}" is bound to another claim than "{name}"')
    read_only = (source is not None and source.read_only) or found.spec.access_modes == ("ReadOnlyMany",)
    return Claimed(claim, found, read_only=read_only or claim.spec.access_modes == ("ReadOnlyMany",))


async def check_access(claimed: Claimed, pod: Pod, *, pods_root: Path) -> None:
    """Refuse a ReadWriteOncePod volume that another pod of this node has.

    Raises:
        Unready: it does.
    """
    if ONE_POD not in claimed.volume.spec.access_modes:
        return
    others = await asyncio.to_thread(users_on_disk, pods_root, claimed.name)
    if others - {pod.metadata.uid}:
        raise Unready(
            f"volume uses the {ONE_POD} access mode and is already in use by another pod "
            f"(uid {min(others - {pod.metadata.uid})})"
        )


def users_on_disk(pods_root: Path, volume: str) -> set[str]:
    """UIDs of the pods that have a PersistentVolume: those with a place of its name on disk."""
    places = (*pods_root.glob("*/volumes/*/*"), *pods_root.glob("*/volumeDevices/*/*"))
    return {
        place.parts[-4] for place in places if place.name == volume
    }  # by name: a stat(2) may never return
