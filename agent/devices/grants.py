"""What plugins answered to Allocate, in CRI's terms. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from proto.cri import runtime_pb2 as pb

if TYPE_CHECKING:
    from agent.api.structs import Container, Pod
    from proto.devices.plugin_pb2 import ContainerAllocateResponse

T = TypeVar("T")


class DeviceError(Exception):
    """A device cannot be given now; the message names the plugin or the resource."""


@dataclass(frozen=True, kw_only=True)
class Grants:
    """What a container's devices bring along. Variables give way to the container's own."""

    envs: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[pb.Mount, ...] = ()
    devices: tuple[pb.Device, ...] = ()
    cdi_devices: tuple[str, ...] = ()

    def apply(self, config: pb.ContainerConfig) -> None:
        """Add all but the variables to a container's configuration."""
        have = {mount.container_path for mount in config.mounts}
        config.mounts.extend(mount for mount in self.mounts if mount.container_path not in have)
        config.devices.extend(self.devices)
        config.CDI_devices.extend(pb.CDIDevice(name=name) for name in self.cdi_devices)
        for name, text in self.annotations.items():
            config.annotations.setdefault(name, text)


NOTHING = Grants()


def merged(answers: Iterable[ContainerAllocateResponse]) -> Grants:
    """The answers for one container's resources together.

    Raises:
        DeviceError: two of them want the same variable, path or device differently.
    """
    envs: dict[str, str] = {}
    notes: dict[str, str] = {}
    mounts: dict[str, pb.Mount] = {}
    devices: dict[str, pb.Device] = {}
    names: dict[str, None] = {}
    for answer in answers:
        for key, value in answer.envs.items():
            _put(envs, key, value, "environment variable")
        for key, value in answer.annotations.items():
            _put(notes, key, value, "annotation")
        for mount in answer.mounts:
            made = pb.Mount(
                container_path=mount.container_path, host_path=mount.host_path, readonly=mount.read_only
            )
            _put(mounts, mount.container_path, made, "mount at")
        for device in answer.devices:
            node = pb.Device(
                container_path=device.container_path,
                host_path=device.host_path,
                permissions=device.permissions,
            )
            _put(devices, device.container_path, node, "device at")
        names |= dict.fromkeys(each.name for each in answer.cdi_devices)
    return Grants(
        envs=envs,
        annotations=notes,
        mounts=tuple(mounts.values()),
        devices=tuple(devices.values()),
        cdi_devices=tuple(names),
    )


def _put(found: dict[str, T], key: str, value: T, what: str) -> None:
    if found.setdefault(key, value) != value:
        raise DeviceError(f"device plugins disagree about the {what} {key[:200]!r}")


class NoDevices:
    """`agent.pods.ports.DevicePort` where there are no plugins."""

    def reserve(self, pod: Pod) -> str:
        """Nothing to reserve."""
        return ""

    async def prepare(self, pod: Pod, container: Container) -> Grants:
        """Nothing to add."""
        return NOTHING

    def release(self, uid: str) -> None:
        """Nothing is remembered."""
