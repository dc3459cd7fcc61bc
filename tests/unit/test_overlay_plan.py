"""The overlay planner: entries for peers, the order of steps, and what makes a device unfit."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import vxlan
from cni.vxlan import Arp, Device, Entries, Fdb, Op, Peer
from host import rtnl
from host.rtnl import Link, Route

DEVICE, UNDERLAY = 7, 2


def peer(number, *, mac=None, net=None, host=None):
    return Peer(
        f"node{number}",
        ipaddress.ip_address(host or f"192.0.2.{number}"),
        (ipaddress.ip_network(net or f"10.244.{number}.0/24"),),
        f"02:00:00:00:00:{number:02x}" if mac is None else mac,
    )


def entries(*peers, own=()):
    return vxlan.desired(peers, device=DEVICE, underlay=UNDERLAY, own=own)[0]


def test_three_entries_for_a_peer():
    found = entries(peer(2))
    gateway = ipaddress.ip_address("10.244.2.0")
    assert found.arps == {Arp(gateway, "02:00:00:00:00:02")}
    assert found.fdbs == {Fdb("02:00:00:00:00:02", ipaddress.ip_address("192.0.2.2"))}
    net = ipaddress.ip_network("10.244.2.0/24")
    assert found.routes == {Route(net, DEVICE, gateway, vxlan.ROUTE_PROTOCOL, True)}


def test_plain_route_for_a_direct_peer():
    found = entries(peer(2, mac=""))
    assert (found.arps, found.fdbs) == (frozenset(), frozenset())
    (route,) = found.routes
    assert (route.index, str(route.gateway), route.onlink) == (UNDERLAY, "192.0.2.2", False)


def kinds(ops):
    return [("-" if op.remove else "+") + type(op.entry).__name__ for op in ops]


def test_order_is_neighbour_fdb_route_and_the_mirror():
    assert kinds(vxlan.plan(entries(peer(2)), Entries())) == ["+Arp", "+Fdb", "+Route"]
    assert kinds(vxlan.plan(Entries(), entries(peer(2)))) == ["-Route", "-Fdb", "-Arp"]
    assert kinds(vxlan.plan(entries(peer(3)), entries(peer(2)))) == [
        "+Arp",
        "+Fdb",
        "+Route",
        "-Route",
        "-Fdb",
        "-Arp",
    ]


def test_changed_mac_or_host_replaces_in_place():
    moved = entries(peer(2, host="192.0.2.99"))
    assert kinds(vxlan.plan(moved, entries(peer(2)))) == ["+Fdb"]
    renewed = entries(peer(2, mac="02:00:00:00:00:99"))
    assert kinds(vxlan.plan(renewed, entries(peer(2)))) == ["+Arp", "+Fdb", "-Fdb"]


def test_conflicting_peers_are_left_out_with_a_reason():
    own = [ipaddress.ip_network("10.244.1.0/24")]
    peers = [
        peer(2),
        peer(3, net="10.244.2.128/25"),
        peer(4, mac="02:00:00:00:00:02"),
        peer(5, net="10.244.0.0/16"),
    ]
    found, problems = vxlan.desired(peers, device=DEVICE, underlay=UNDERLAY, own=own)
    assert found == entries(peer(2))
    assert [problem.split(":")[0] for problem in problems] == ["node node3", "node node4", "node node5"]


def key_of(entry):
    """What the kernel replaces by: address of a neighbour, MAC of an FDB entry, range of a route."""
    if isinstance(entry, Arp):
        return Arp, entry.address
    return (Fdb, entry.mac) if isinstance(entry, Fdb) else (Route, entry.destination)


def apply(ops, actual):
    """A kernel in a few lines: one entry for each key."""
    table = {key_of(entry): entry for entry in (*actual.arps, *actual.fdbs, *actual.routes)}
    for op in ops:
        entry = op.entry
        if op.remove:
            del table[key_of(entry)]
            continue
        table[key_of(entry)] = entry
        if isinstance(entry, Route) and entry.onlink:
            assert (Arp, entry.gateway) in table, "a route never comes before its neighbour"
            assert (Fdb, table[Arp, entry.gateway].mac) in table, "nor before the FDB entry"
    parts = (frozenset(e for e in table.values() if isinstance(e, kind)) for kind in (Arp, Fdb, Route))
    return Entries(*parts)


PEERS = st.builds(
    lambda number, mac, host: peer(
        number, mac="" if mac == 0 else f"02:00:00:00:00:{mac:02x}", host=f"192.0.2.{host}"
    ),
    st.integers(1, 6),
    st.integers(0, 6),
    st.integers(1, 6),
)


@given(st.lists(PEERS, max_size=6), st.lists(PEERS, max_size=6))
def test_any_state_becomes_any_other_in_order(before, after):
    actual, wanted = entries(*before), entries(*after)
    assert apply(vxlan.plan(wanted, actual), actual) == wanted
    assert vxlan.plan(wanted, wanted) == []


WANTED = Device(
    name="flannel.1",
    vni=1,
    port=8472,
    underlay=UNDERLAY,
    local=ipaddress.ip_address("192.0.2.1"),
    mac="02:00:00:00:00:01",
    mtu=1450,
    address=ipaddress.ip_interface("10.244.1.0/32"),
)


def link(**changes):
    values = {"vni": 1, "port": 8472, "underlay": UNDERLAY, "learning": 0, "local": "192.0.2.1", **changes}
    data = (
        (rtnl.IFLA_VXLAN_ID, struct.pack("=I", values["vni"])),
        (rtnl.IFLA_VXLAN_PORT, struct.pack("!H", values["port"])),
        (rtnl.IFLA_VXLAN_LINK, struct.pack("=I", values["underlay"])),
        (rtnl.IFLA_VXLAN_LEARNING, bytes([values["learning"]])),
        (rtnl.IFLA_VXLAN_LOCAL, ipaddress.ip_address(values["local"]).packed),
    )
    return Link(9, "flannel.1", values.get("kind", "vxlan"), "02:00:00:00:00:77", 1400, False, 0, data=data)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"vni": 2}, "its VNI is 2, not 1"),
        ({"port": 4789}, "its port is 4789, not 8472"),
        ({"underlay": 3}, "its underlay device is 3, not 2"),
        ({"learning": 1}, "its learning is 1, not 0"),
        ({"local": "192.0.2.9"}, "its local address is 192.0.2.9, not 192.0.2.1"),
        ({"kind": "bridge"}, "it is a bridge device"),
    ],
)
def test_incompatible_devices_say_why(changes, reason):
    assert vxlan.incompatible(link(**changes), WANTED) == reason


def test_requests_name_what_they_do():
    (arp,), (fdb,), (route,) = (getattr(entries(peer(2)), name) for name in ("arps", "fdbs", "routes"))
    words = [vxlan.request(Op(entry), device=DEVICE).what for entry in (arp, fdb, route)]
    assert words == [
        "set neighbour 10.244.2.0 02:00:00:00:00:02",
        "set fdb 02:00:00:00:00:02 192.0.2.2",
        "set route 10.244.2.0/24",
    ]
