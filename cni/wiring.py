"""Devices, addresses and routes of pods: the bridge, and one veth pair for each pod interface.

    pod's namespace                     node's namespace
    eth0 10.244.1.5/24  <-- veth -->  vethXXXXXXXXXXX, port of cbr0 10.244.1.1/24
    default via 10.244.1.1

Names and MACs follow from what a thing is, never from when it was made: the host end's name from container
and interface, a pod's MAC from its address. So a second try finds what the first left behind, and an address
that is used again keeps its MAC, which makes neighbour entries of others right instead of stale.

Not for: who gets which address (cni.ipam) and packet filters (cni.firewall).
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from cni import bandwidth, errors, ipam, spoofguard
from cni.config import ALIAS, Attachment, NetworkConfig, gateway, mac_for
from cni.errors import CniError
from host import netns, rtnl, traffic
from host.errors import Exists, NotFound, Unsupported
from host.linkremoval import remove_link
from host.netlink import Netlink
from host.nlmsg import Request
from host.rtnl import IPAddress, IPInterface, Link, Route

GUARD_PRIORITY = 1
"""Of the spoof guard among a host end's filters: asked first."""

_ANYWHERE = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}
_IPV6_SYSCTL = "/proc/sys/net/ipv6/conf"


@dataclass(frozen=True)
class Wire:
    """What ADD made: the bridge, the pair, and its MTU in bytes."""

    bridge: Link
    host_end: Link
    pod_mac: str


def host_name(attachment: Attachment) -> str:
    """Name of the node's end of a pod interface. Pure."""
    key = f"{attachment.container_id}/{attachment.ifname}".encode()
    return "veth" + hashlib.sha256(key).hexdigest()[:11]


def pod_mac(config: NetworkConfig, addresses: Sequence[IPAddress]) -> str:
    """The MAC of a pod's interface: as it was asked for, or what follows from its first address. Pure."""
    first = next(address for subnet in config.subnets for address in addresses if address in subnet)
    return config.pod.mac or mac_for(first)


def alias_for(attachment: Attachment, addresses: Sequence[IPInterface], pod: str = "") -> str:
    """The alias of a host end: whose it is, in one line that `ip link` shows and `leases_of` reads. Pure."""
    ips = ",".join(str(address.ip) for address in addresses)
    return f"{ALIAS} {attachment.container_id}/{attachment.ifname} {ips} {pod}".rstrip()


def leases_of(link: Link) -> list[ipam.Lease]:
    """The leases that a host end's alias tells of; [] for any other device. Pure."""
    owner = owner_of(link)
    if owner is None or link.kind != "veth":
        return []
    with suppress(ValueError):
        return [ipam.Lease(ipaddress.ip_address(ip), owner) for ip in link.alias.split(" ")[2].split(",")]
    return []


def owner_of(link: Link) -> Attachment | None:
    """Whose a device is by its alias, of those whose name agrees with it; None for any other. Pure."""
    words = link.alias.split(" ")
    if len(words) < 3 or words[0] != ALIAS:
        return None
    container_id, _, ifname = words[1].partition("/")
    owner = Attachment(container_id, ifname)
    names = {"veth": host_name, "ifb": bandwidth.shaper_name}
    return owner if link.kind in names and names[link.kind](owner) == link.name else None


class Wiring:
    """The devices of the namespace that `netlink` belongs to, which is the node's."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink

    def ensure_bridge(self, config: NetworkConfig) -> Link:
        """The bridge, up, with the gateway address of each range and no other; made if missing.

        Raises:
            Unsupported: another kind of device has its name.
        """
        bridge = self._netlink.find_link(config.bridge)
        if bridge is None:
            mac = mac_for(gateway(config.subnets[0]).ip)
            request = rtnl.add_bridge(config.bridge, mac=mac, mtu=config.mtu or None)
            self._netlink.execute(request, ignore=(Exists,))  # a parallel ADD may have been faster
            bridge = self._netlink.get_link(config.bridge)
            _write_sysctl(config.bridge, "accept_ra", "0")  # pods must not become the node's routers
        if bridge.kind != "bridge":
            problem = f"is a {bridge.kind or 'hardware'} device, not a bridge"
            raise Unsupported(errno.EOPNOTSUPP, f"use {config.bridge}", problem)
        self._ensure_gateways(config, bridge)
        if not bridge.up or (config.mtu and bridge.mtu != config.mtu):
            self._netlink.execute(rtnl.set_link(config.bridge, up=True, mtu=config.mtu or None))
            bridge = self._netlink.get_link(config.bridge)
        return bridge

    def obstacle(self, config: NetworkConfig) -> str:
        """Why pods cannot be connected now, as text for STATUS; '' when they can."""
        bridge = self._netlink.find_link(config.bridge)
        if bridge is not None and bridge.kind != "bridge":
            return f"{config.bridge} is a {bridge.kind or 'hardware'} device, not a bridge"
        return ""

    def _ensure_gateways(self, config: NetworkConfig, bridge: Link) -> None:
        wanted = {gateway(subnet) for subnet in config.subnets}
        present = {
            found.address
            for found in self._netlink.addresses(bridge.index)
            if not (found.address.version == 6 and found.address.ip.is_link_local)
        }
        requests = [rtnl.address(bridge.index, address, remove=True) for address in present - wanted]
        requests += [rtnl.address(bridge.index, address) for address in wanted - present]
        if requests:
            self._netlink.execute(*requests, ignore=(Exists, NotFound))

    def attach(
        self,
        config: NetworkConfig,
        attachment: Attachment,
        *,
        pod_netns: str,
        addresses: Sequence[IPInterface],
        pod: str = "",
    ) -> Wire:
        """Make the pair and configure the pod's end; undone as a whole when a step fails.

        `pod` is namespace and name, shown with the device.

        Raises:
            NotFound, Unsupported: `pod_netns` is no network namespace.
            Exists: the namespace has an interface of that name which is not ours.
        """
        fd = netns.open_netns(pod_netns)
        try:
            if netns.identity(fd) == netns.identity():
                raise CniError(errors.INVALID_ENVIRONMENT, "CNI_NETNS is the node's own network namespace")
            bridge = self.ensure_bridge(config)
            mtu = config.mtu or bridge.mtu
            mac = pod_mac(config, [address.ip for address in addresses])
            name, alias = host_name(attachment), alias_for(attachment, addresses, pod)
            pair = rtnl.add_veth(
                name, peer=attachment.ifname, peer_netns=fd, peer_mac=mac, mtu=mtu, master=bridge.index
            )
            self._add_pair(attachment, pair, rtnl.set_link(name, alias=alias, hairpin=config.hairpin))
            try:
                netns.run_in(fd, lambda: _configure_pod(attachment.ifname, addresses))
                # Carrier changes take effect on a kernel worker, and until then packets are dropped without
                # a word. Asking for a device makes the kernel finish its pending change first (measured on
                # 6.18: 16 of 40 first packets lost without, none with), the port before its bridge.
                host_end = self._netlink.get_link(host_name(attachment))
                bridge = self._netlink.get_link(config.bridge)
                self._netlink.execute(
                    *(
                        rtnl.neighbour(bridge.index, address.ip, mac, state=rtnl.NUD_REACHABLE)
                        for address in addresses
                    )
                )
                self._bound(config, attachment, host_end.index, mac=mac, addresses=addresses, alias=alias)
            except BaseException:
                self.detach(attachment)
                raise
            return Wire(bridge, host_end, mac)
        finally:
            os.close(fd)

    def _bound(
        self,
        config: NetworkConfig,
        attachment: Attachment,
        host_end: int,
        *,
        mac: str,
        addresses: Sequence[IPInterface],
        alias: str,
    ) -> None:
        """What the pod may send, and how fast: before it has a process that could send anything."""
        if not config.spoof_protection and not config.pod.egress and not config.pod.ingress:
            return
        requests = [traffic.add_clsact(host_end)]
        if config.spoof_protection:
            guard = spoofguard.program(mac, [address.ip for address in addresses])
            requests.append(traffic.ingress_filter(host_end, GUARD_PRIORITY, guard))
        try:
            self._netlink.execute(*requests)
            bandwidth.apply(self._netlink, attachment, config.pod, host_end=host_end, alias=alias)
        except NotFound as exc:
            problem = "this kernel lacks sch_ingress, cls_bpf, sch_tbf, act_mirred or ifb"
            if config.spoof_protection:
                problem += ' (without the first two: "spoofProtection": false)'
            raise Unsupported(errno.EOPNOTSUPP, exc.what, problem) from exc

    def _add_pair(self, attachment: Attachment, *requests: Request) -> None:
        try:
            self._netlink.execute(*requests)
        except Exists:
            # An ADD of this attachment was killed half-way: its pair carries our name. Start afresh.
            self.detach(attachment)
            self._netlink.execute(*requests)

    def detach(self, attachment: Attachment) -> None:
        """Remove the pair; one that is gone already is success ("DEL", section 2 of the specification).

        Returns when no packet passes it any more; the kernel frees it some milliseconds later.
        """
        bandwidth.remove(self._netlink, attachment)
        remove_link(host_name(attachment))

    def attached(self) -> dict[Attachment, list[ipam.Lease]]:
        """Every pod interface that has its host end on this node, with the addresses it was made for."""
        found = (leases_of(link) for link in self._netlink.links())
        return {leases[0].owner: leases for leases in found if leases and leases[0].owner}

    def owners(self) -> set[Attachment]:
        """Whose devices there are on this node, of any kind."""
        return {owner for link in self._netlink.links() if (owner := owner_of(link))}


def _configure_pod(ifname: str, addresses: Sequence[IPInterface]) -> None:
    """Runs inside the pod's namespace: loopback up, addresses and default routes set."""
    with Netlink() as inside:
        _write_sysctl(ifname, "accept_ra", "0")  # other pods must not become this pod's routers
        inside.execute(rtnl.set_link("lo", up=True), rtnl.set_link(ifname, up=True))
        link = inside.get_link(ifname)
        requests = [rtnl.address(link.index, address) for address in addresses]
        for address in addresses:
            router = gateway(address.network).ip
            requests.append(
                rtnl.route(Route(_ANYWHERE[address.version], link.index, router, rtnl.RTPROT_BOOT))
            )
        inside.execute(*requests)


def _write_sysctl(ifname: str, name: str, value: str) -> None:
    try:
        fd = os.open(f"{_IPV6_SYSCTL}/{ifname}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # a kernel without IPv6
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
