"""From Nodes to peers, and our own half of the agreement: flannel's annotations.

What other nodes wrote is parsed strictly (an IP address, a unicast MAC, our VNI, CIDRs) and becomes numbers
before anything uses it: an annotation once reached a shell in flannel (GHSA-vchx-5pr6-ffx2). A Node that does
not parse is left out with a reason, and hurts nobody else.

Pure. The annotations are those of flannel's `subnet/kube`: backend-data, backend-type, kube-subnet-manager,
public-ip (and public-ip-overwrite, which wins).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping

from agent.api.structs import Node
from agent.overlay.settings import OverlaySettings
from cni.vxlan import Peer
from host import rtnl
from host.errors import InputError
from host.rtnl import IPAddress, IPInterface, IPNetwork

PREFIX = "flannel.alpha.coreos.com/"
BACKEND_DATA, BACKEND_TYPE = PREFIX + "backend-data", PREFIX + "backend-type"
SUBNET_MANAGER, PUBLIC_IP = PREFIX + "kube-subnet-manager", PREFIX + "public-ip"
PUBLIC_IP_OVERWRITE = PREFIX + "public-ip-overwrite"
_MAX_BACKEND_DATA = 1024  # bytes; flannel writes about 45


def own_annotations(settings: OverlaySettings, *, host: IPAddress, mac: str) -> dict[str, str]:
    """What this node tells its peers about itself."""
    data = {"VNI": settings.vni, "VtepMAC": mac} if settings.backend == "vxlan" else None
    return {
        BACKEND_DATA: json.dumps(data, separators=(",", ":")),
        BACKEND_TYPE: settings.backend,
        SUBNET_MANAGER: "true",
        PUBLIC_IP: str(host),
    }


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
    nodes: Mapping[str, Node], *, own_name: str, own: IPInterface | None, settings: OverlaySettings
) -> tuple[list[Peer], list[str]]:
    """The peers among these Nodes, and one line for each Node that should be a peer and cannot be.

    Args:
        nodes: all Nodes by name.
        own_name: of this node, which is no peer of its own.
        own: this node's address and subnet in the underlay, for direct routing.
        settings: of the overlay.
    """
    peers, problems = [], []
    for name in sorted(nodes):
        node = nodes[name]
        if name == own_name or (not node.spec.pod_cidrs and not node.spec.pod_cidr):
            continue  # a node without a range has no pods to reach; it will change when it gets one
        try:
            peers.append(_parse_peer(name, node, own=own, settings=settings))
        except InputError as exc:
            problems.append(f"node {name}: {exc}")
    return peers, problems


def _parse_peer(name: str, node: Node, *, own: IPInterface | None, settings: OverlaySettings) -> Peer:
    if settings.backend == "vxlan" and not settings.direct_routing:
        _vtep_mac(node, settings.vni)  # of all that may be missing, the most telling
    host, ranges = _host(node), pod_ranges(node)
    direct = settings.backend == "host-gw" or (
        settings.direct_routing and own is not None and host in own.network
    )
    if direct:
        reachable = tuple(net for net in ranges if net.version == host.version)
        return Peer(name, host, reachable)
    ipv4 = tuple(net for net in ranges if net.version == 4)
    return Peer(name, host, ipv4, _vtep_mac(node, settings.vni))


def _host(node: Node) -> IPAddress:
    annotations = node.metadata.annotations
    text = annotations.get(PUBLIC_IP_OVERWRITE) or annotations.get(PUBLIC_IP) or ""
    if not text:
        internal = [address.address for address in node.status.addresses if address.type == "InternalIP"]
        text = internal[0] if internal else ""
    try:
        host = ipaddress.ip_address(text)
    except ValueError as exc:
        raise InputError(f"{PUBLIC_IP}: {text[:60]!r} is not an IP address") from exc
    if host.is_loopback or host.is_multicast or host.is_unspecified or host.is_link_local:
        raise InputError(f"{PUBLIC_IP}: {host} cannot be another node's address")
    return host


def _vtep_mac(node: Node, vni: int) -> str:
    annotations = node.metadata.annotations
    kind, text = annotations.get(BACKEND_TYPE, ""), annotations.get(BACKEND_DATA, "")
    if not kind and not text:
        raise InputError("has not announced a VXLAN device yet")
    if kind != "vxlan":
        raise InputError(f"{BACKEND_TYPE}: {kind[:40]!r} is not vxlan, as on this node")
    try:
        data = json.loads(text) if len(text) <= _MAX_BACKEND_DATA else None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or not isinstance(data.get("VtepMAC"), str):
        raise InputError(f"{BACKEND_DATA}: {text[:60]!r} has no VtepMAC")
    peer_vni = data.get("VNI", vni)  # flannel before 0.13 did not tell it
    if peer_vni != vni:
        raise InputError(f"{BACKEND_DATA}: VNI {str(peer_vni)[:20]} is not this node's {vni}")
    mac = rtnl.mac_bytes(data["VtepMAC"].lower())
    if mac[0] & 1 or not any(mac):
        raise InputError(f"{BACKEND_DATA}: {data['VtepMAC']!r} is not the MAC of one device")
    return rtnl.mac_text(mac)
