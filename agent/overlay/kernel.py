"""The overlay's one hold on the kernel: list what is there, apply what the planner said. No decisions.

All methods block for a netlink round trip or two, in the network namespace of the thread that made the
object; `Overlay` calls them from a thread.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Protocol

from agent.overlay import bridge, sysctl
from cni import firewall, vxlan
from cni.vxlan import Arp, Device, Entries, Fdb, Op
from host import rtnl
from host.errors import Exists, NotFound, from_errno
from host.netlink import Netlink
from host.rtnl import IPAddress, IPInterface, Link

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_BATCH = 64  # requests in one system call; their answers must fit the socket's receive buffer


class Kernel(Protocol):
    """What the overlay needs of a kernel."""

    def underlay(self, host: IPAddress) -> tuple[Link, IPInterface]:
        """The device that has this address, and the address with its subnet. Raises NotFound."""

    def find_link(self, name: str) -> Link | None:
        """The device of that name."""

    def ensure_device(self, wanted: Device) -> tuple[Link, str]:
        """The VXLAN device, up and as wanted; and why an older one had to be replaced ('' if not)."""

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

    def close(self) -> None:
        """Give up the netlink socket."""
        self._netlink.close()

    def underlay(self, host: IPAddress) -> tuple[Link, IPInterface]:
        """See Kernel."""
        for found in self._netlink.addresses(family=_FAMILIES[host.version]):
            if found.address.ip == host:
                return self._netlink.get_link(found.index), found.address
        raise NotFound(errno.EADDRNOTAVAIL, f"find the device of node IP {host}", "set --node-ip")

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
        listed = self._netlink.addresses(link.index, family=_FAMILIES[wanted.address.version])
        present = {found.address for found in listed}
        requests = [rtnl.address(link.index, old, remove=True) for old in present - {wanted.address}]
        requests += [rtnl.address(link.index, new) for new in {wanted.address} - present]
        if requests:
            self._netlink.execute(*requests, ignore=(Exists, NotFound))
        return link, reason

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
