"""host.netlink against pyroute2: whatever either makes, each must see, and see alike.

Every case runs in fresh network namespaces for every pair of a maker and a viewer; what shall be seen is
written down, so the two cannot be wrong together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from netlink_views import Ours, View, Witness

from host import netns
from host.rtnl import Route

BRIDGE_MAC, POD_MAC, PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"


Case = Callable[[View, View], None]


@contextmanager
def opened(*kinds: type[Ours] | type[Witness]) -> Iterator[list[Any]]:
    views = [kind() for kind in kinds]
    try:
        yield views
    finally:
        for view in views:
            view.close()


@pytest.fixture(
    params=[(Ours, Witness), (Witness, Ours), (Ours, Ours)], ids=["ours-seen", "seen-by-us", "own"]
)
def inside(request: pytest.FixtureRequest, new_netns: Callable[[str], Path]) -> Callable[[Case], None]:
    """Runs a case with a maker and a viewer in a fresh namespace, on a thread of its own."""
    path = new_netns("main")

    def run(case: Case) -> None:
        def work() -> None:
            with opened(*request.param) as (maker, viewer):
                case(maker, viewer)

        netns.run_in(path, work)

    return run


def test_bridge_and_its_changes(inside: Callable[[Case], None]) -> None:
    def case(maker: View, viewer: View) -> None:
        maker.bridge("br0", mac=BRIDGE_MAC, mtu=1400)
        index = viewer.index("br0")
        expected = {
            "index": index,
            "kind": "bridge",
            "mac": BRIDGE_MAC,
            "mtu": 1400,
            "up": True,
            "master": 0,
            "alias": "",
            "hairpin": None,
        }
        assert viewer.links()["br0"] == expected
        maker.change("br0", up=False, mtu=1300, alias="default/pod ü")
        assert viewer.links()["br0"] == expected | {"mtu": 1300, "up": False, "alias": "default/pod ü"}
        maker.delete("br0")
        assert set(viewer.links()) == {"lo"}

    inside(case)


def test_veth_into_another_namespace_and_its_bridge_port(
    inside: Callable[[Case], None], new_netns: Callable[[str], Path]
) -> None:
    pod = new_netns("pod")

    def case(maker: View, viewer: View) -> None:
        maker.bridge("br0", mac=BRIDGE_MAC, mtu=1500)
        master = viewer.index("br0")
        fd = os.open(pod, os.O_RDONLY)
        try:
            maker.veth("veth0", peer="eth0", peer_netns=fd, mac=POD_MAC, mtu=1400, master=master)
        finally:
            os.close(fd)
        port = viewer.links()["veth0"]
        assert (port["kind"], port["master"], port["mtu"], port["up"]) == ("veth", master, 1400, True)
        assert port["hairpin"] is False
        for wanted in (True, False):
            maker.hairpin("veth0", wanted)
            assert viewer.links()["veth0"]["hairpin"] is wanted
        assert "eth0" not in viewer.links()

        def inner() -> dict[str, Any]:
            with opened(type(viewer)) as (seen,):
                return seen.links()["eth0"]

        far = netns.run_in(pod, inner)
        assert (far["kind"], far["mac"], far["mtu"], far["up"]) == ("veth", POD_MAC, 1400, False)
        maker.delete("veth0")
        assert "veth0" not in viewer.links()

    inside(case)


def test_vxlan_attributes(inside: Callable[[Case], None]) -> None:
    def case(maker: View, viewer: View) -> None:
        maker.bridge("under0", mac=BRIDGE_MAC, mtu=1500)
        underlay = viewer.index("under0")
        maker.vxlan("vx0", vni=77, port=8472, underlay=underlay, local="192.0.2.1", mac=POD_MAC)
        assert viewer.vxlan_facts("vx0") == {
            "vni": 77,
            "port": 8472,
            "underlay": underlay,
            "local": "192.0.2.1",
            "learning": False,
        }
        link = viewer.links()["vx0"]
        assert (link["kind"], link["mac"], link["mtu"], link["up"]) == ("vxlan", POD_MAC, 1450, False)

    inside(case)


@pytest.mark.parametrize("text", ["10.244.1.1/24", "fd00:10:244:1::1/64"])
def test_addresses(inside: Callable[[Case], None], text: str) -> None:
    def case(maker: View, viewer: View) -> None:
        maker.bridge("br0", mac=BRIDGE_MAC, mtu=1500)
        index, value = viewer.index("br0"), ip_interface(text)
        maker.address(index, value)
        assert {a for a in viewer.addresses(index) if not a.ip.is_link_local} == {value}
        maker.address(index, value, remove=True)
        assert {a for a in viewer.addresses(index) if not a.ip.is_link_local} == set()

    inside(case)


def test_routes(inside: Callable[[Case], None]) -> None:
    def case(maker: View, viewer: View) -> None:
        maker.bridge("br0", mac=BRIDGE_MAC, mtu=1500)
        index = viewer.index("br0")
        maker.address(index, ip_interface("192.0.2.1/24"))
        maker.address(index, ip_interface("2001:db8::1/64"))
        before = viewer.routes(index)
        gateway, gateway6, away = (ip_address(t) for t in ("192.0.2.9", "2001:db8::9", "198.51.100.1"))
        routes = {
            Route(ip_network("0.0.0.0/0"), index, gateway),
            Route(ip_network("10.244.2.0/24"), index, gateway, 86),
            Route(ip_network("10.244.3.0/24"), index, away, 86, onlink=True),
            Route(ip_network("10.244.4.0/24"), index),
            Route(ip_network("fd00:10:244:2::/64"), index, gateway6, 86),
        }
        for one in routes:
            maker.route(one)
        assert viewer.routes(index) - before == routes
        moved = Route(ip_network("10.244.2.0/24"), index, ip_address("192.0.2.8"), 86)
        maker.route(moved)
        assert {r for r in viewer.routes(index) if r.destination == moved.destination} == {moved}
        maker.route(moved, remove=True)
        assert moved not in viewer.routes(index)

    inside(case)


@pytest.mark.parametrize("text", ["10.244.2.0", "fd00:10:244:2::"])
def test_neighbours(inside: Callable[[Case], None], text: str) -> None:
    def case(maker: View, viewer: View) -> None:
        maker.bridge("br0", mac=BRIDGE_MAC, mtu=1500)
        index, target = viewer.index("br0"), ip_address(text)
        maker.neighbour(index, target, PEER_MAC)
        assert viewer.neighbours(index) == {(target, PEER_MAC)}
        maker.neighbour(index, target, POD_MAC)
        assert viewer.neighbours(index) == {(target, POD_MAC)}
        maker.neighbour(index, target, POD_MAC, remove=True)
        assert viewer.neighbours(index) == set()

    inside(case)


def test_fdb_of_a_vxlan_device(inside: Callable[[Case], None]) -> None:
    def case(maker: View, viewer: View) -> None:
        maker.bridge("under0", mac=BRIDGE_MAC, mtu=1500)
        underlay = viewer.index("under0")
        maker.vxlan("vx0", vni=1, port=8472, underlay=underlay, local="192.0.2.1", mac=POD_MAC)
        index, host, other = viewer.index("vx0"), ip_address("192.0.2.2"), ip_address("192.0.2.3")
        maker.fdb(index, PEER_MAC, host)
        assert viewer.fdb_entries(index) == {(PEER_MAC, host)}
        maker.fdb(index, PEER_MAC, other)
        assert viewer.fdb_entries(index) == {(PEER_MAC, other)}
        maker.fdb(index, PEER_MAC, other, remove=True)
        assert viewer.fdb_entries(index) == set()

    inside(case)


def test_refusals_have_types(inside: Callable[[Case], None]) -> None:
    def case(maker: Any, _viewer: View) -> None:
        maker.bridge("br0", mac=BRIDGE_MAC, mtu=1500)
        with pytest.raises(maker.present):
            maker.bridge("br0", mac=BRIDGE_MAC, mtu=1500)
        with pytest.raises(maker.absent):
            maker.index("nothing")

    inside(case)
