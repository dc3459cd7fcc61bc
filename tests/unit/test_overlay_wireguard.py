"""The WireGuard back end: peers from annotations, the plan of its entries, and its messages."""

from __future__ import annotations

import base64
import ipaddress
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from agent.api.structs import Node, NodeSpec, ObjectMeta
from agent.overlay import key, peers
from agent.overlay.settings import OverlaySettings
from cni import vxlan
from host import wireguard
from host.rtnl import Route
from host.wireguard import Tunnel

SETTINGS = OverlaySettings(backend="wireguard")
KEY, OTHER = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
OWN = ipaddress.ip_interface("192.0.2.11/24")
NET, NET6 = ipaddress.ip_network("10.244.2.0/24"), ipaddress.ip_network("fd00:2::/64")
TUNNEL = Tunnel(KEY, ipaddress.ip_address("192.0.2.12"), 51820, (NET,))


def node(data: str = f'{{"PublicKey":"{KEY}"}}', *, kind: str = "wireguard") -> Node:
    notes = {peers.BACKEND_TYPE: kind, peers.BACKEND_DATA: data, peers.PUBLIC_IP: "192.0.2.12"}
    return Node(metadata=ObjectMeta(name="n2", annotations=notes), spec=NodeSpec(pod_cidrs=(str(NET),)))


def parsed(one: Node) -> tuple[list[vxlan.Peer], list[str]]:
    return peers.parse_peers({"n2": one}, own_name="n1", own=OWN, settings=SETTINGS)


def test_a_peer_is_its_key():
    (peer,), problems = parsed(node())
    assert (peer.key, peer.mac, peer.host, peer.subnets, problems) == (KEY, "", TUNNEL.host, (NET,), [])
    told = peers.own_annotations(SETTINGS, [(OWN.ip, "", KEY)])
    assert told[peers.BACKEND_TYPE] == "wireguard"
    assert told[peers.BACKEND_DATA] == f'{{"PublicKey":"{KEY}"}}'


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (node(kind="vxlan"), "'vxlan' is not wireguard, as on this node"),
        (node('{"PublicKey":"c2hvcnQ="}'), "'c2hvcnQ=' is not a WireGuard key: 32 bytes in base64"),
        (node('{"PublicKey":"$(reboot)"}'), "is not a WireGuard key"),
        (node('{"PublicKey":7}'), "has no PublicKey"),
        (node("null"), "has no PublicKey"),
        (node("", kind=""), "has not announced a WireGuard device yet"),
    ],
)
def test_a_peer_that_tells_nonsense_is_left_out_and_named(one, words):
    found, (problem,) = parsed(one)
    assert found == [] and problem.startswith("node n2: ") and words in problem


def test_peers_come_before_routes_and_go_after_them():
    found, _ = parsed(node())
    wanted, problems = vxlan.desired(found, device=7, underlay=2, port=51820)
    assert problems == []
    route = Route(NET, 7, None, vxlan.ROUTE_PROTOCOL, False)
    assert wanted == vxlan.Entries(routes=frozenset({route}), tunnels=frozenset({TUNNEL}))
    assert [op.entry for op in vxlan.plan(wanted, vxlan.Entries())] == [TUNNEL, route]
    assert vxlan.plan(vxlan.Entries(), wanted) == [vxlan.Op(route, True), vxlan.Op(TUNNEL, True)]
    moved = replace(TUNNEL, host=ipaddress.ip_address("192.0.2.99"))
    held = replace(wanted, tunnels=frozenset({moved}))
    assert vxlan.plan(wanted, held) == [vxlan.Op(TUNNEL)], "set anew, not removed"


def test_two_nodes_cannot_have_one_key():
    twin = vxlan.Peer(
        "n3", ipaddress.ip_address("192.0.2.13"), (ipaddress.ip_network("10.244.3.0/24"),), key=KEY
    )
    wanted, (problem,) = vxlan.desired([*parsed(node())[0], twin], device=7, underlay=2, port=51820)
    assert problem == f"node n3: WireGuard device has the key {KEY} of another node"
    assert wanted.tunnels == {TUNNEL}


def test_what_is_sent_reads_back_as_the_same_peers():
    """The kernel's dump has the attributes of a request, which the second kernel's tests confirm."""
    six = Tunnel(OTHER, ipaddress.ip_address("2001:db8::12"), 51821, (NET, NET6))
    body = wireguard.set_tunnels("flannel-wg", [TUNNEL, six])
    assert wireguard.parse([body]) == wireguard.DeviceFacts("", 0, frozenset({TUNNEL, six}))
    assert wireguard.parse([]) == wireguard.DeviceFacts("", 0, frozenset())


def test_a_peer_spread_over_two_messages_is_one():
    first = wireguard.set_tunnels("flannel-wg", [TUNNEL])
    second = wireguard.set_tunnels("flannel-wg", [replace(TUNNEL, ranges=(NET6,))])
    (tunnel,) = wireguard.parse([first, second]).tunnels
    assert tunnel.ranges == (NET, NET6)


def test_the_key_is_kept_for_its_owner_alone(tmp_path: Path):
    path = tmp_path / "state/flannel-wg.key"
    made = key.keep(path)
    assert key.keep(path) == made and len(made) == wireguard.KEY_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert wireguard.key_bytes(key.public(made)) != made
    path.write_text("nonsense")
    assert key.keep(path) != made, "a new one, and the old file set aside"
    assert len(list(path.parent.iterdir())) == 2
