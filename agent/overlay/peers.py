"""From Nodes to peers, and our own half of the agreement: flannel's annotations.

What other nodes wrote is parsed strictly (an IP address, a unicast MAC, our VNI, CIDRs) and becomes numbers
before anything uses it: an annotation once reached a shell in flannel (GHSA-vchx-5pr6-ffx2). A Node that does
not parse is left out with a reason, and hurts nobody else.

Pure. The annotations are those of flannel's `subnet/kube`: backend-type, kube-subnet-manager; backend-data,
public-ip (and public-ip-overwrite, which wins) for IPv4; backend-v6-data, public-ipv6(-overwrite) for IPv6.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.api.structs import Node
from agent.overlay.settings import OverlaySettings
from cni.vxlan import Peer
from host import rtnl
from host.errors import InputError
from host.rtnl import IPAddress, IPInterface, IPNetwork
from host.wireguard import key_bytes

PREFIX = "flannel.alpha.coreos.com/"
BACKEND_DATA, BACKEND_TYPE = PREFIX + "backend-data", PREFIX + "backend-type"
SUBNET_MANAGER, PUBLIC_IP = PREFIX + "kube-subnet-manager", PREFIX + "public-ip"
_MAX_BACKEND_DATA = 1024  # bytes; flannel writes about 45


@dataclass(frozen=True)
class Words:
    """The annotations that say where a node is in one IP version."""

    data: str
    host: str
    host_overwrite: str


@dataclass(frozen=True)
class Said:
    """What a Node comes to: a peer, or what is wrong with it, or neither."""

    node: Node
    peer: Peer | None = None
    problem: str = ""


WORDS = {
    4: Words(BACKEND_DATA, PUBLIC_IP, PUBLIC_IP + "-overwrite"),
    6: Words(PREFIX + "backend-v6-data", PREFIX + "public-ipv6", PREFIX + "public-ipv6-overwrite"),
}
"""By IP version."""


def own_annotations(
    settings: OverlaySettings, places: Iterable[tuple[IPAddress, str, str]]
) -> dict[str, str]:
    """What this node tells its peers about itself.

    Args:
        settings: of the overlay.
        places: for each IP version this node has pods of: its address, its VXLAN device's MAC ('': none), its
            WireGuard device's public key ('': none).
    """
    told = {BACKEND_TYPE: settings.backend, SUBNET_MANAGER: "true"}
    for host, mac, key in places:
        data: dict[str, object] | None = {"VNI": settings.vni, "VtepMAC": mac} if mac else None
        data = {"PublicKey": key} if key else data
        told[WORDS[host.version].data] = json.dumps(data, separators=(",", ":"))
        told[WORDS[host.version].host] = str(host)
    return told


def relevant(node: Node) -> tuple[object, ...]:
    """All of a Node that the overlay looks at; as long as it is equal, nothing has to be done."""
    ours = {key: value for key, value in node.metadata.annotations.items() if key.startswith(PREFIX)}
    return ours, node.spec.pod_cidr, node.spec.pod_cidrs, node.status.addresses


def pod_ranges(node: Node) -> tuple[IPNetwork, ...]:
    """The pod CIDRs a controller gave the node; () when none yet. Raises InputError."""
    texts = node.spec.pod_cidrs or ((node.spec.pod_cidr,) if node.spec.pod_cidr else ())
    try:
        return tuple(ipaddress.ip_network(text) for text in texts)
    except ValueError as exc:
        raise InputError(f"spec.podCIDRs: {exc}") from exc


def parse_peers(
    nodes: Mapping[str, Node],
    *,
    own_name: str,
    own: IPInterface,
    settings: OverlaySettings,
    said: dict[str, Said] | None = None,
) -> tuple[list[Peer], list[str]]:
    """The peers of one IP version among these Nodes, and one line for each that should be one and cannot be.

    Args:
        nodes: all Nodes by name.
        own_name: of this node, which is no peer of its own.
        own: this node's address and subnet in the underlay; peers and pods are those of its IP version.
        settings: of the overlay.
        said: what each Node came to the last time, with `own` and `settings` as they are; brought up to date.
    """
    said = {} if said is None else said
    for gone in said.keys() - nodes.keys():
        del said[gone]
    peers, problems = [], []
    for name in sorted(nodes.keys() - {own_name}):
        node = nodes[name]
        known = said.get(name)
        if known is None or known.node is not node:
            known = said[name] = _said(name, node, own=own, settings=settings)
        if known.peer is not None:
            peers.append(known.peer)
        if known.problem:
            problems.append(known.problem)
    return peers, problems


def _said(name: str, node: Node, *, own: IPInterface, settings: OverlaySettings) -> Said:
    try:
        ranges = tuple(net for net in pod_ranges(node) if net.version == own.version)
        if not ranges:  # no pods to reach; it will change when it gets a range
            return Said(node)
        return Said(node, _parse_peer(name, node, ranges, own=own, settings=settings))
    except InputError as exc:
        return Said(node, problem=f"node {name}: {exc}")


def _parse_peer(
    name: str, node: Node, ranges: tuple[IPNetwork, ...], *, own: IPInterface, settings: OverlaySettings
) -> Peer:
    version = own.version
    if settings.backend == "vxlan" and not settings.direct_routing:
        _vtep_mac(node, settings.vni, version)  # of all that may be missing, the most telling
    host = _host(node, version)
    if host == own.ip:
        raise InputError(
            f"{WORDS[version].host}: {host} is this node's address too; set --node-ip or overlay.iface on "
            "both to what the other reaches (machines made by Vagrant all have 10.0.2.15)"
        )
    if settings.backend == "wireguard":
        return Peer(name, host, ranges, key=_public_key(node, version))
    if settings.backend == "host-gw" or (settings.direct_routing and host in own.network):
        return Peer(name, host, ranges)
    return Peer(name, host, ranges, _vtep_mac(node, settings.vni, version))


def _host(node: Node, version: int) -> IPAddress:
    annotations, words = node.metadata.annotations, WORDS[version]
    text = annotations.get(words.host_overwrite) or annotations.get(words.host) or ""
    if not text:
        internal = (address.address for address in node.status.addresses if address.type == "InternalIP")
        text = next((address for address in internal if (":" in address) == (version == 6)), "")
    try:
        host = ipaddress.ip_address(text)
    except ValueError as exc:
        raise InputError(f"{words.host}: {text[:60]!r} is not an IP address") from exc
    if host.version != version:
        raise InputError(f"{words.host}: {host} is not an IPv{version} address")
    if host.is_loopback or host.is_multicast or host.is_unspecified or host.is_link_local:
        raise InputError(f"{words.host}: {host} cannot be another node's address")
    return host


def _backend_data(node: Node, version: int, *, kind: str, device: str, field: str) -> dict[str, Any]:
    """What a node of the same back end tells of its device: an object with this field, a string."""
    annotations, key = node.metadata.annotations, WORDS[version].data
    theirs, text = annotations.get(BACKEND_TYPE, ""), annotations.get(key, "")
    if not theirs and not text:
        raise InputError(f"has not announced a {device} device yet")
    if theirs != kind:
        raise InputError(f"{BACKEND_TYPE}: {theirs[:40]!r} is not {kind}, as on this node")
    try:
        data = json.loads(text) if len(text) <= _MAX_BACKEND_DATA else None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or not isinstance(data.get(field), str):
        raise InputError(f"{key}: {text[:60]!r} has no {field}")
    return data


def _public_key(node: Node, version: int) -> str:
    found = _backend_data(node, version, kind="wireguard", device="WireGuard", field="PublicKey")
    key_bytes(found["PublicKey"])
    return str(found["PublicKey"])


def _vtep_mac(node: Node, vni: int, version: int) -> str:
    key = WORDS[version].data
    data = _backend_data(node, version, kind="vxlan", device="VXLAN", field="VtepMAC")
    peer_vni = data.get("VNI", vni)  # flannel before 0.13 did not tell it
    if peer_vni != vni:
        raise InputError(f"{key}: VNI {str(peer_vni)[:20]} is not this node's {vni}")
    mac = rtnl.mac_bytes(data["VtepMAC"].lower())
    if mac[0] & 1 or not any(mac):
        raise InputError(f"{key}: {data['VtepMAC']!r} is not the MAC of one device")
    return rtnl.mac_text(mac)
