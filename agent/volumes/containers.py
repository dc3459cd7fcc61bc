"""What one container asks of its pod's volumes: its mounts and devices in the runtime's terms. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent.expansion import expand
from agent.volumes.base import BlockDevice, Mount, PreparedVolume, Unready, VolumeError
from agent.volumes.subpath import check_subpath

if TYPE_CHECKING:
    from agent.api.structs import Container, VolumeMount


def subpath_of(wanted: VolumeMount, env: Mapping[str, str]) -> tuple[str, ...]:
    """The elements of a mount's subPath or subPathExpr; none for the whole volume.

    Raises:
        Unready: it could leave the volume, or names a variable that the container does not have.
    """
    path = wanted.sub_path
    if wanted.sub_path_expr:
        unknown: list[str] = []
        path = expand(wanted.sub_path_expr, env, unknown=unknown.append)
        if unknown:
            raise Unready(f"subPathExpr {wanted.sub_path_expr!r}: no variable named {unknown[0]!r}")
    return check_subpath(path)


def mount_of(wanted: VolumeMount, volume: PreparedVolume, source: Path, env: Mapping[str, str]) -> Mount:
    """One mount for the runtime.

    Args:
        wanted: the container's volumeMount.
        volume: its volume.
        source: what is bound: the volume, or its subPath's place.
        env: the container's environment, for subPathExpr.

    Raises:
        VolumeError: the volume is a block device.
    """
    if volume.device is not None:
        raise VolumeError(
            f'volume "{volume.name}" has volumeMode Block: use volumeDevices in place of volumeMounts'
        )
    read_only = wanted.read_only or volume.read_only
    path = wanted.mount_path if wanted.mount_path.startswith("/") else f"/{wanted.mount_path}"
    return Mount(
        volume=wanted.name,
        host_path="" if volume.image else str(source),
        container_path=path,
        read_only=read_only,
        propagation=wanted.mount_propagation or "None",
        recursive_read_only=read_only and wanted.recursive_read_only in ("Enabled", "IfPossible"),
        image=volume.image,
        image_sub_path="/".join(subpath_of(wanted, env)) if volume.image else "",
    )


def block_devices(container: Container, prepared: Mapping[str, PreparedVolume]) -> tuple[BlockDevice, ...]:
    """A container's volumeDevices.

    Raises:
        VolumeError: one names no volume of the pod, or one that is no block device.
    """
    devices = []
    for wanted in container.volume_devices:
        volume = prepared.get(wanted.name)
        where = f'container {container.name}: volumeDevices {wanted.device_path} names volume "{wanted.name}"'
        if volume is None:
            raise VolumeError(f"{where}, which the pod does not have")
        if volume.device is None:
            raise VolumeError(f"{where}, which has volumeMode Filesystem: use volumeMounts")
        devices.append(BlockDevice(str(volume.device), wanted.device_path, volume.read_only))
    return tuple(devices)
