"""What the overlay stands on in one IP version: this node's place in the underlay, and its tunnel device."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.api.structs import Node
from agent.overlay import key, mac
from agent.overlay.kernel import Kernel, WireGuardDevice
from agent.overlay.settings import OverlaySettings
from cni import vxlan
from cni.vxlan import Device, Entries
from host.errors import InputError
from host.rtnl import IPAddress, IPInterface, IPNetwork, Link

log = logging.getLogger(__name__)
_WIREGUARD_OVERHEAD = 80  # IPv6 40, UDP 8, WireGuard 32; flannel takes it for IPv4 as well


@dataclass(frozen=True)
class Ground:
    """One IP version's place and device (index 0: none), and what pods may send (`mtu`, bytes)."""

    underlay: Link
    address: IPInterface
    device: int
    mac: str
    mtu: int
    key: str = ""  # public one of a WireGuard device


def prepare(
    kernel: Kernel,
    settings: OverlaySettings,
    *,
    hosts: Mapping[int, IPAddress],
    own: IPNetwork,
    node: Node | None,
) -> Ground:
    """The tunnel device of one IP version as it shall be (or gone, without tunnels).

    Args:
        kernel: where it is made.
        settings: of the overlay.
        hosts: this node's addresses by IP version.
        own: this node's first pod range of the version.
        node: our own Node as the API has it, whose annotation may know the device's MAC.

    Raises:
        InputError: the node has no address of this version.
        HostError: the kernel refused.
    """
    version = own.version
    host = hosts.get(version)
    if host is None:
        raise InputError(
            f"spec.podCIDRs: {own} needs an IPv{version} address of the node; add one to --node-ip"
        )
    underlay, address = kernel.underlay(host)
    if version == 6:
        kernel.keep_hearing_routers(underlay.name)
    name = settings.device_of(version)
    if settings.backend == "host-gw":
        kernel.delete_device(name)
        return Ground(underlay, address, 0, "", settings.mtu or underlay.mtu)
    if settings.backend == "wireguard":
        return _wireguard(kernel, settings, underlay, address, own)
    there = kernel.find_link(name)
    wanted = Device(
        name=name,
        vni=settings.vni,
        port=settings.port,
        underlay=underlay.index,
        local=host,
        mac=mac.keep(
            Path(settings.state_dir) / f"{name}.mac",
            device=there.mac if there and there.kind == "vxlan" else "",
            node=node,
            version=version,
        ),
        mtu=settings.mtu or underlay.mtu - vxlan.OVERHEAD[version],
        address=ipaddress.ip_interface(own.network_address),
    )
    link, reason = kernel.ensure_device(wanted)
    if reason:
        log.warning("overlay: replaced %s: %s", wanted.name, reason)
    return Ground(underlay, address, link.index, wanted.mac, wanted.mtu)


def _wireguard(
    kernel: Kernel, settings: OverlaySettings, underlay: Link, address: IPInterface, own: IPNetwork
) -> Ground:
    name = settings.device_of(own.version)
    private = key.keep(Path(settings.state_dir) / f"{name}.key")
    mtu = settings.mtu or underlay.mtu - _WIREGUARD_OVERHEAD
    wanted = WireGuardDevice(
        name=name,
        port=settings.wireguard_port_of(own.version),
        private=private,
        public=key.public(private),
        mtu=mtu,
        address=ipaddress.ip_interface(own.network_address),
    )
    return Ground(underlay, address, kernel.ensure_wireguard(wanted).index, "", mtu, wanted.public)


def clear(kernel: Kernel, settings: OverlaySettings, version: int) -> None:
    """Take away what an IP version had that this node has no pods of. Raises HostError."""
    kernel.delete_device(settings.device_of(version))
    if ops := vxlan.plan(Entries(), kernel.entries(0, version)):
        kernel.apply(ops, device=0)
