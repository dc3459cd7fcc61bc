"""The host's device nodes that a container asked for, and what its devices cgroup allows; runs in
nodelet-cri."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from cri.runtime.messages import DeviceNode
from cri.runtime.spec import ContainerSpec
from host.cgroups.devices import ALL_DEVICES, CONTAINER_DEVICES
from host.cgroups.model import DeviceRule
from host.errors import from_errno, from_oserror

_OURS = ("pts", "shm", "mqueue", "fd", "console", "core", "ptmx")
"""Names in /dev that a container has of its own."""


def device_nodes(spec: ContainerSpec, host: Path = Path("/dev")) -> tuple[DeviceNode, ...]:
    """The nodes asked for, as they are on the host.

    Raises:
        HostError: a device is missing, or no device.
    """
    wanted = [(device.source, device.target, device.access) for device in spec.devices]
    if spec.all_devices:
        for where, folders, files in os.walk(host):
            folders[:] = [name for name in folders if name not in _OURS]
            names = [Path(where, name) for name in files if name not in _OURS]
            nodes = [path for path in names if _is_device(path.lstat())]
            wanted += [(path, f"/dev/{path.relative_to(host)}", "rwm") for path in nodes]
    return tuple(_node(source, target, access) for source, target, access in wanted)


def device_rules(spec: ContainerSpec, nodes: Iterable[DeviceNode]) -> tuple[DeviceRule, ...]:
    """What the container's devices cgroup allows: what every container has, and the nodes asked for.

    Args:
        nodes: what `device_nodes` found for the spec.
    """
    if spec.all_devices:
        return ALL_DEVICES
    asked = (
        DeviceRule(
            kind="b" if stat.S_ISBLK(node.mode) else "c",
            major=os.major(node.number),
            minor=os.minor(node.number),
            access=node.access,
        )
        for node in nodes
    )
    return (*CONTAINER_DEVICES, *asked)


def _node(source: Path, target: str, access: str) -> DeviceNode:
    try:
        found = source.stat()
    except OSError as exc:
        raise from_oserror(exc, f"device {source}") from exc
    if not _is_device(found):
        raise from_errno(errno.ENODEV, f"device {source}")
    return DeviceNode(
        target=target,
        mode=found.st_mode,
        number=found.st_rdev,
        uid=found.st_uid,
        gid=found.st_gid,
        access=access,
    )


def _is_device(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
