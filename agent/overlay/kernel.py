"""The overlay's one hold on the kernel: list what is there, apply what the planner said. No decisions.

All methods block for a netlink round trip or two, in the network namespace of the thread that made the
object; `Overlay` calls them from a thread.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from agent.overlay import bridge, sysctl
from cni import firewall, vxlan
from cni.vxlan import Arp, Device, Entries, Fdb, Op
from host import rtnl, wireguard
from host.errors import Exists, HostError, NotFound, Unsupported, from_errno
from host.netlink import Netlink
from host.rtnl import IPAddress, IPInterface, Link
from host.wireguard import Tunnel, WireGuard

log = logging.getLogger(__name__)
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_NO_WIREGUARD = "this kernel has no WireGuard (modprobe wireguard); set overlay.backend to vxlan"
_BATCH = 64  # requests in one system call; their answers must fit the socket's receive buffer


@dataclass(frozen=True)
class WireGuardDevice:
    """The WireGuard device as it shall be."""

    name: str
    port: int
    private: bytes = field(repr=False)
    public: str  # the key that belongs to it, in base64
    mtu: int
    address: IPInterface  # the first address of the node's pod range, as a single address


class Kernel(Protocol):
    """What the overlay needs of a kernel."""

    def underlay(self, host: IPAddress) -> tuple[Link, IPInterface]:
        """The device that has this address, and the address with its subnet. Raises NotFound."""

    def keep_hearing_routers(self, device: str) -> None:
        """Let the node keep an IPv6 default route that it was told of, although it will forward."""

    def find_link(self, name: str) -> Link | None:
        """The device of that name."""

    def ensure_device(self, wanted: Device) -> tuple[Link, str]:
        """The VXLAN device, up and as wanted; and why an older one had to be replaced ('' if not)."""

    def ensure_wireguard(self, wanted: WireGuardDevice) -> Link:
        """The WireGuard device, up and as wanted. Raises Unsupported: this kernel has none."""

    def delete_device(self, name: str) -> None:
        """Remove a device; none is success."""

    def keep_bridge(self, name: str, wanted: Sequence[IPInterface], *, mtu: int) -> list[str]:
        """Give the pods' bridge, where there are pods, what it has lost; what that was."""

    def entries(self, device: int, version: int) -> Entries:
        """All of one IP version that is ours: everything permanent on its device, and our routes."""

    def apply(self, ops: Sequence[Op], *, device: int) -> list[str]:
        """Take the steps in order; what failed, one line each."""

    def remove_rules(self) -> None:
        """Take away the packet filter rules of the pod network."""


class NetlinkKernel:
    """The kernel of the network namespace of the thread that makes this object."""

    def __init__(self) -> None:
        self._netlink = Netlink()
        self._wireguard: WireGuard | None = None  # where there is such a device
        self._wireguard_names: dict[int, str] = {}

    def close(self) -> None:
        """Give up the netlink socket."""
        self._netlink.close()
        if self._wireguard is not None:
            self._wireguard.close()

    def underlay(self, host: IPAddress) -> tuple[Link, IPInterface]:
        """See Kernel."""
        for found in self._netlink.addresses(family=_FAMILIES[host.version]):
            if found.address.ip == host:
                return self._netlink.get_link(found.index), found.address
        raise NotFound(errno.EADDRNOTAVAIL, f"find the device of node IP {host}", "set --node-ip")

    def keep_hearing_routers(self, device: str) -> None:
        """See Kernel."""
        if sysctl.keep_hearing_routers(device):
            log.info("overlay: accept_ra set to 2 on %s, was 1: forwarding would lose its routes", device)

    def find_link(self, name: str) -> Link | None:
        """See Kernel."""
        return self._netlink.find_link(name)

    def ensure_device(self, wanted: Device) -> tuple[Link, str]:
        """See Kernel."""
        link, reason = self._netlink.find_link(wanted.name), ""
        if link is not None and (reason := vxlan.incompatible(link, wanted)):
            self.delete_device(wanted.name)
            link = None
        if link is None:
            request = rtnl.add_vxlan(
                wanted.name,
                vni=wanted.vni,
                port=wanted.port,
                underlay=wanted.underlay,
                local=wanted.local,
                mac=wanted.mac,
                mtu=wanted.mtu,
            )
            self._netlink.execute(request)
            if wanted.address.version == 4:
                sysctl.disable_ipv6(wanted.name)
            else:
                sysctl.quieten_ipv6(wanted.name)
            link = self._netlink.get_link(wanted.name)
        if not link.up or link.mac != wanted.mac or link.mtu != wanted.mtu:
            self._netlink.execute(rtnl.set_link(wanted.name, up=True, mac=wanted.mac, mtu=wanted.mtu))
            link = self._netlink.get_link(wanted.name)
        self._keep_address(link, wanted.address)
        return link, reason

    def _keep_address(self, link: Link, wanted: IPInterface) -> None:
        """This address of its IP version, and no other."""
        listed = self._netlink.addresses(link.index, family=_FAMILIES[wanted.version])
        present = {found.address for found in listed}
        requests = [rtnl.address(link.index, old, remove=True) for old in present - {wanted}]
        requests += [rtnl.address(link.index, new) for new in {wanted} - present]
        if requests:
            self._netlink.execute(*requests, ignore=(Exists, NotFound))

    def ensure_wireguard(self, wanted: WireGuardDevice) -> Link:
        """See Kernel."""
        name = wanted.name
        link = self._netlink.find_link(name)
        if link is not None and link.kind != wireguard.KIND:
            self.delete_device(name)
            link = None
        if link is None:
            try:
                self._netlink.execute(rtnl.add_wireguard(name, mtu=wanted.mtu))
            except Unsupported as exc:
                raise Unsupported(exc.errno or errno.EOPNOTSUPP, exc.what, _NO_WIREGUARD) from exc
            link = self._netlink.get_link(name)
        self._wireguard = self._wireguard or WireGuard()
        facts = self._wireguard.facts(name)
        if (facts.key, facts.port) != (wanted.public, wanted.port):
            self._wireguard.set_key(name, wanted.private, wanted.port)
        if not link.up or link.mtu != wanted.mtu:
            self._netlink.execute(rtnl.set_link(name, up=True, mtu=wanted.mtu))
            link = self._netlink.get_link(name)
        self._keep_address(link, wanted.address)
        self._wireguard_names = {**self._wireguard_names, link.index: name}
        return link

    def delete_device(self, name: str) -> None:
        """See Kernel."""
        self._netlink.execute(rtnl.delete_link(name), ignore=(NotFound,))

    def keep_bridge(self, name: str, wanted: Sequence[IPInterface], *, mtu: int) -> list[str]:
        """See Kernel."""
        return bridge.keep(self._netlink, name, wanted, mtu=mtu)

    def entries(self, device: int, version: int) -> Entries:
        """See Kernel."""
        routes = frozenset(
            route
            for route in self._netlink.routes(family=_FAMILIES[version])
            if route.protocol == vxlan.ROUTE_PROTOCOL
            or (device and route.index == device and route.protocol != rtnl.RTPROT_KERNEL)
        )
        if not device:
            return Entries(routes=routes)
        if self._wireguard is not None and device in self._wireguard_names:
            facts = self._wireguard.facts(self._wireguard_names[device])
            return Entries(routes=routes, tunnels=facts.tunnels)
        arps = frozenset(
            Arp(entry.address, entry.mac)
            for entry in self._netlink.neighbours(device)
            if entry.address is not None and entry.mac and entry.state & rtnl.NUD_PERMANENT
        )
        fdbs = frozenset(
            Fdb(entry.mac, entry.address)
            for entry in self._netlink.fdb(device)
            if entry.address is not None and entry.mac
        )
        return Entries(arps, fdbs, routes)

    def apply(self, ops: Sequence[Op], *, device: int) -> list[str]:
        """See Kernel."""
        failures = []
        for of_wireguard, group in groupby(ops, key=lambda op: isinstance(op.entry, Tunnel)):
            apply = self._apply_tunnels if of_wireguard else self._apply_entries
            failures += apply(list(group), device)
        return failures

    def _apply_tunnels(self, ops: Sequence[Op], device: int) -> list[str]:
        if self._wireguard is None:
            return []
        try:
            for remove, group in groupby(ops, key=lambda op: op.remove):
                peers = [op.entry for op in group if isinstance(op.entry, Tunnel)]
                self._wireguard.set_tunnels(self._wireguard_names[device], peers, remove=remove)
        except HostError as exc:
            return [str(exc)]
        return []

    def _apply_entries(self, ops: Sequence[Op], device: int) -> list[str]:
        failures = []
        for start in range(0, len(ops), _BATCH):
            part = ops[start : start + _BATCH]
            requests = [vxlan.request(op, device=device) for op in part]
            for code, op, request in zip(self._netlink.try_execute(*requests), part, requests, strict=True):
                gone = op.remove and code in (errno.ENOENT, errno.ESRCH, errno.ENODEV)
                if code and not gone:
                    failures.append(str(from_errno(code, request.what)))
        return failures

    def remove_rules(self) -> None:
        """See Kernel."""
        firewall.remove()
