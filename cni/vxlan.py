"""The overlay as data: which kernel entries make the pods of other nodes reachable, and how to get there.

For a peer with pod range 10.244.2.0/24 behind the node address 192.0.2.12, whose VXLAN device has the MAC M,
this node needs three entries, in flannel's layout so that its nodes and ours can share a cluster:

    route      10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink    what goes through the tunnel
    neighbour  10.244.2.0 is M on flannel.1                         the inner destination MAC
    FDB        M is at 192.0.2.12 on flannel.1                      the outer destination address

Two entries and a route for each peer, none for each pod, and no flooding or learning: tables stay as small
as the cluster, and nothing depends on what some pod said last.

Order is an invariant. A packet uses route, neighbour, FDB in this order, so they are set in the opposite one:
neighbour, FDB, route; otherwise the first packets would be dropped, and the kernel would remember the failed
neighbour. Removal is the mirror: route, FDB, neighbour. Additions come before removals, so that a range that
moves from one peer to another is never without a way.

With IPv6 a node has a second device, flannel-v6.1: IPv6 pods over IPv6, as IPv4 pods over IPv4. Each IP
version is planned by itself.

With WireGuard a peer is one entry of the device, its key with its address and ranges, and a route without a
gateway; the kernel knows by the ranges which peer a packet is for. Set first, and removed last, as above.

Everything here is pure. Not for: reading Nodes (agent.overlay.peers) and talking to the kernel.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from host import rtnl
from host.errors import InputError
from host.nlmsg import Request
from host.rtnl import IPAddress, IPInterface, IPNetwork, Link, Route
from host.wireguard import Tunnel

ROUTE_PROTOCOL = 110
"""Marks routes as ours (`ip route show proto 110`); not taken in /etc/iproute2/rt_protos."""

OVERHEAD = {4: 50, 6: 70}
"""Bytes that VXLAN adds to a payload, by IP version below: Ethernet 14, IP 20 or 40, UDP 8, VXLAN 8."""


@dataclass(frozen=True, order=True)
class Arp:
    """A permanent neighbour entry on the VXLAN device."""

    address: IPAddress
    mac: str


@dataclass(frozen=True, order=True)
class Fdb:
    """A permanent forwarding entry of the VXLAN device: frames for `mac` go to `host`."""

    mac: str
    host: IPAddress


@dataclass(frozen=True)
class Peer:
    """Another node: where it is, and which pods live there."""

    name: str
    host: IPAddress  # its address in the underlay
    subnets: tuple[IPNetwork, ...]
    mac: str = ""  # of its VXLAN device; '' to reach it otherwise
    key: str = ""  # of its WireGuard device; neither: by plain routes


@dataclass(frozen=True)
class Device:
    """The VXLAN device as it shall be."""

    name: str
    vni: int
    port: int
    underlay: int  # index of the device that carries the tunnel
    local: IPAddress  # this node's address there
    mac: str
    mtu: int
    address: IPInterface  # the first address of the node's pod range, as a single address


@dataclass(frozen=True)
class Entries:
    """All entries of the overlay: those wanted, or those that the kernel lists as ours."""

    arps: frozenset[Arp] = frozenset()
    fdbs: frozenset[Fdb] = frozenset()
    routes: frozenset[Route] = frozenset()
    tunnels: frozenset[Tunnel] = frozenset()


@dataclass(frozen=True)
class Op:
    """One step: set an entry (replacing one in its place), or remove it."""

    entry: Arp | Fdb | Route | Tunnel
    remove: bool = False


def desired(
    peers: Iterable[Peer], *, device: int, underlay: int, own: Iterable[IPNetwork] = (), port: int = 0
) -> tuple[Entries, list[str]]:
    """The entries for these peers, and what is wrong with those that are left out.

    Args:
        peers: in any order; of two that claim the same range or MAC the first by name has it.
        device: index of the tunnel device (0 where all peers are reached by plain routes).
        underlay: index of the device that the nodes' own network is on.
        own: this node's pod ranges, which no peer can have.
        port: UDP port of WireGuard, the same on all nodes.
    """
    ranges = _Ranges()
    for net in own:
        ranges.add(net)
    arps: dict[IPAddress, Arp] = {}
    fdbs: dict[str, Fdb] = {}
    routes: dict[IPNetwork, Route] = {}
    tunnels: dict[str, Tunnel] = {}
    problems = []
    for peer in sorted(peers, key=lambda peer: peer.name):
        taken = [net for net in peer.subnets if ranges.overlap(net)]
        if taken or not peer.subnets:
            problems.append(f"node {peer.name}: pod range {taken[0] if taken else 'missing'} is not free")
            continue
        if peer.mac and peer.mac in fdbs:
            problems.append(f"node {peer.name}: VXLAN device has the MAC {peer.mac} of another node")
            continue
        if peer.key and peer.key in tunnels:
            problems.append(f"node {peer.name}: WireGuard device has the key {peer.key} of another node")
            continue
        if peer.mac:
            fdbs[peer.mac] = Fdb(peer.mac, peer.host)
        if peer.key:
            ranges_of = tuple(sorted(peer.subnets, key=str))
            tunnels[peer.key] = Tunnel(peer.key, peer.host, port, ranges_of)
        for net in peer.subnets:
            ranges.add(net)
            if peer.mac:
                gateway = net.network_address
                arps[gateway] = Arp(gateway, peer.mac)
                routes[net] = Route(net, device, gateway, ROUTE_PROTOCOL, True)
            elif peer.key:
                routes[net] = Route(net, device, None, ROUTE_PROTOCOL, False)
            else:
                routes[net] = Route(net, underlay, peer.host, ROUTE_PROTOCOL, False)
    made = Entries(
        frozenset(arps.values()),
        frozenset(fdbs.values()),
        frozenset(routes.values()),
        frozenset(tunnels.values()),
    )
    return made, problems


def plan(wanted: Entries, actual: Entries) -> list[Op]:
    """The steps from `actual` to `wanted`, in the order that the module's text states; [] when equal."""
    sets = [
        *(Op(arp) for arp in sorted(wanted.arps - actual.arps)),
        *(Op(fdb) for fdb in sorted(wanted.fdbs - actual.fdbs)),
        *(Op(tunnel) for tunnel in _by_key(wanted.tunnels - actual.tunnels)),
        *(Op(route) for route in _sorted(wanted.routes - actual.routes)),
    ]
    # Setting an entry replaces the one with the same key: removing that one afterwards would hit the new one.
    destinations = {route.destination for route in wanted.routes}
    macs, addresses = {fdb.mac for fdb in wanted.fdbs}, {arp.address for arp in wanted.arps}
    keys = {tunnel.key for tunnel in wanted.tunnels}
    removes: list[Arp | Fdb | Route | Tunnel] = [
        *(r for r in _sorted(actual.routes - wanted.routes) if r.destination not in destinations),
        *(fdb for fdb in sorted(actual.fdbs - wanted.fdbs) if fdb.mac not in macs),
        *(arp for arp in sorted(actual.arps - wanted.arps) if arp.address not in addresses),
        *(tunnel for tunnel in _by_key(actual.tunnels - wanted.tunnels) if tunnel.key not in keys),
    ]
    return sets + [Op(entry, remove=True) for entry in removes]


def request(op: Op, *, device: int) -> Request:
    """The rtnetlink request of one step; neighbours and FDB entries are those of `device`.

    Raises:
        InputError: a tunnel of WireGuard, which is set by another kind of message.
    """
    entry = op.entry
    if isinstance(entry, Tunnel):
        raise InputError(f"the peer {entry.key} is no entry of rtnetlink")
    if isinstance(entry, Arp):
        return rtnl.neighbour(device, entry.address, entry.mac, remove=op.remove)
    if isinstance(entry, Fdb):
        return rtnl.fdb(device, entry.mac, entry.host, remove=op.remove)
    return rtnl.route(entry, remove=op.remove)


def incompatible(link: Link, wanted: Device) -> str:
    """Why an existing device cannot be kept, as text for a log; '' when it can.

    Only what the kernel cannot change in place counts: address, MAC and MTU are simply set.
    """
    if link.kind != "vxlan":
        return f"it is a {link.kind or 'hardware'} device"
    data = dict(link.data)
    facts = (
        ("VNI", _number("=I", data.get(rtnl.IFLA_VXLAN_ID)), wanted.vni),
        ("port", _number("!H", data.get(rtnl.IFLA_VXLAN_PORT)), wanted.port),
        ("underlay device", _number("=I", data.get(rtnl.IFLA_VXLAN_LINK)), wanted.underlay),
        ("learning", _number("=B", data.get(rtnl.IFLA_VXLAN_LEARNING)), 0),
    )
    for name, found, right in facts:
        if found != right:
            return f"its {name} is {found}, not {right}"
    local = data.get(rtnl.IFLA_VXLAN_LOCAL) or data.get(rtnl.IFLA_VXLAN_LOCAL6)
    if local != wanted.local.packed:
        found_local = ipaddress.ip_address(local) if local else "not set"
        return f"its local address is {found_local}, not {wanted.local}"
    return ""


def _number(layout: str, raw: bytes | None) -> int:
    return int(struct.unpack(layout, raw)[0]) if raw and len(raw) == struct.calcsize(layout) else 0


class _Ranges:
    """Ranges that are taken; whether another one overlaps costs the same for one or for thousands of them."""

    def __init__(self) -> None:
        self._taken: set[tuple[int, int, int]] = set()
        self._above: set[tuple[int, int, int]] = set()

    def add(self, net: IPNetwork) -> None:
        own, *above = self._prefixes(net)
        self._taken.add(own)
        self._above.update(above)

    def overlap(self, net: IPNetwork) -> bool:
        own, *above = self._prefixes(net)
        return own in self._taken or own in self._above or not self._taken.isdisjoint(above)

    @staticmethod
    def _prefixes(net: IPNetwork) -> list[tuple[int, int, int]]:
        """The range itself and all that contain it, as (IP version, prefix length, prefix bits)."""
        bits = int(net.network_address) >> (net.max_prefixlen - net.prefixlen)
        return [(net.version, net.prefixlen - up, bits >> up) for up in range(net.prefixlen + 1)]


def _by_key(tunnels: Iterable[Tunnel]) -> list[Tunnel]:
    return sorted(tunnels, key=lambda tunnel: tunnel.key)


def _sorted(routes: Iterable[Route]) -> list[Route]:
    return sorted(routes, key=lambda r: (r.destination.version, int(r.destination.network_address), r.index))
