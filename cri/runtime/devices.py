"""The host's device nodes that a container asked for; runs in nodelet-cri."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from cri.runtime.messages import DeviceNode
from cri.runtime.spec import ContainerSpec
from host.errors import from_errno, from_oserror

_OURS = ("pts", "shm", "mqueue", "fd", "console", "core", "ptmx")
"""Names in /dev that a container has of its own."""


def device_nodes(spec: ContainerSpec, host: Path = Path("/dev")) -> tuple[DeviceNode, ...]:
    """The nodes asked for, as they are on the host.

    Raises:
        HostError: a device is missing, or no device.
    """
    wanted = [(device.source, device.target) for device in spec.devices]
    if spec.all_devices:
        for where, folders, files in os.walk(host):
            folders[:] = [name for name in folders if name not in _OURS]
            names = [Path(where, name) for name in files if name not in _OURS]
            wanted += [(path, f"/dev/{path.relative_to(host)}") for path in names if _is_device(path.lstat())]
    return tuple(_node(source, target) for source, target in wanted)


def _node(source: Path, target: str) -> DeviceNode:
    try:
        found = source.stat()
    except OSError as exc:
        raise from_oserror(exc, f"device {source}") from exc
    if not _is_device(found):
        raise from_errno(errno.ENODEV, f"device {source}")
    return DeviceNode(
        target=target, mode=found.st_mode, number=found.st_rdev, uid=found.st_uid, gid=found.st_gid
    )


def _is_device(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
