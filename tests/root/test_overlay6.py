"""IPv6 pods of two nodes, alone and beside IPv4, through tunnels and plain routes, in real namespaces."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lan import Lan, Machine, ping, udp_source
from overlays import Cluster, routes

from host import netns, processes
from host.netlink import Netlink


@pytest.fixture
def lan(new_netns: Callable[[str], Path], tmp_path: Path) -> Lan:
    lan = Lan(new_netns, tmp_path)
    lan.add_node()
    lan.add_node()
    return lan


def give(lan: Lan, stack: str) -> None:
    """Pod ranges of one IP version or of both."""
    for machine in lan.nodes:
        ranges = {"ipv6": (machine.pod_cidr6,), "dual": (machine.pod_cidr, machine.pod_cidr6)}
        machine.pod_cidrs = ranges[stack]


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
@pytest.mark.parametrize("stack", ["ipv6", "dual"])
def test_pods_of_two_nodes_reach_each_other(lan: Lan, tmp_path: Path, stack: str, backend: str) -> None:
    give(lan, stack)
    assert Cluster(lan, tmp_path, backend=backend).sync() == []
    one, two = lan.nodes
    pod1, ips1 = one.add_pod_of("p1", mtu=1430)
    pod2, ips2 = two.add_pod_of("p2", mtu=1430)
    assert len(ips2) == len(one.pod_cidrs)
    for ip1, ip2 in zip(ips1, ips2, strict=True):
        assert ping(pod1, ip2)
        assert ping(pod2, ip1)
        assert ping(one.netns, ip2), "node to a pod on another node"
        assert ping(pod1, ip2, size=1430 - (48 if ":" in ip2 else 28)), "a packet of the full pod MTU"
        assert udp_source(pod1, pod2, ip2) == ip1, "no address translation between pods"
    assert ping(pod1, two.ip6), "pod to another node"
    assert udp_source(pod1, two.netns, two.ip6) == ips1[-1], "and not translated there"


def advertise(device: str) -> bool:
    """Send a router advertisement (RFC 4861, 4.2) to all nodes; False while the device has no address yet."""
    index = socket.if_nametoindex(device)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        try:
            sock.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), ("ff02::1", 0, 0, index))
        except OSError:
            return False
    return True


def test_the_default_route_of_a_router_stays(lan: Lan, tmp_path: Path) -> None:
    """A kernel that begins to forward forgets what routers told it, unless it is told to listen on."""
    give(lan, "ipv6")
    one = lan.nodes[0]

    def told() -> str:
        netns.run_in(lan.switch, lambda: advertise("switch0"))
        time.sleep(0.1)
        shown = processes.run(["ip", "-6", "route", "show", "default"]).stdout.decode()
        return shown if "proto ra" in shown else ""

    end = time.monotonic() + 60
    while not one.run(told):
        assert time.monotonic() < end, "no route by an advertisement"
    assert Cluster(lan, tmp_path).sync() == []
    one.add_pod("p1", mtu=1430)
    assert one.run(lambda: Path("/proc/sys/net/ipv6/conf/all/forwarding").read_text()) == "1\n"
    kept = one.run(lambda: processes.run(["ip", "-6", "route", "show", "default"]).stdout.decode())
    assert "proto ra" in kept


def test_device_and_entries_are_flannels(lan: Lan, tmp_path: Path) -> None:
    give(lan, "dual")
    cluster = Cluster(lan, tmp_path)
    assert cluster.sync() == []
    shown = lan.nodes[0].run(
        lambda: processes.run(["ip", "-d", "addr", "show", "flannel-v6.1"]).stdout.decode()
    )
    assert "vxlan id 1 local 2001:db8::11 dev eth0 srcport 0 0 dstport 8472 nolearning" in shown
    assert "mtu 1430" in shown
    assert [line.split()[1] for line in shown.splitlines() if "inet6" in line] == ["fd00:10:244:1::/128"]
    told = cluster.annotations["node1"]
    assert told["flannel.alpha.coreos.com/public-ipv6"] == "2001:db8::11"
    assert told["flannel.alpha.coreos.com/public-ip"] == "192.0.2.11"
    with Netlink(lan.nodes[0].netns) as netlink:
        mac = netlink.get_link("flannel-v6.1").mac
    assert told["flannel.alpha.coreos.com/backend-v6-data"] == f'{{"VNI":1,"VtepMAC":"{mac}"}}'


def test_whatever_is_deleted_by_hand_is_back(lan: Lan, tmp_path: Path) -> None:
    give(lan, "dual")
    cluster = Cluster(lan, tmp_path)
    cluster.sync()
    one, two = lan.nodes
    pod1, _ = one.add_pod_of("p1", mtu=1430)
    _, ips2 = two.add_pod_of("p2", mtu=1430)
    with Netlink(one.netns) as netlink:
        before = netlink.get_link("flannel-v6.1").mac
        for spoil in (
            ["ip", "-6", "route", "del", two.pod_cidr6],
            ["ip", "-6", "neigh", "flush", "dev", "flannel-v6.1", "nud", "permanent"],
            ["bridge", "fdb", "del", tunnel_mac(two), "dev", "flannel-v6.1", "dst", two.ip6],
            ["ip", "link", "del", "flannel-v6.1"],
        ):
            one.run(lambda argv=spoil: processes.run(argv))
            assert not ping(pod1, ips2[1], timeout=0.2), spoil
            assert cluster.sync(1) == []
            assert ping(pod1, ips2[1]), spoil
            assert ping(pod1, ips2[0]), spoil
        assert netlink.get_link("flannel-v6.1").mac == before


def tunnel_mac(machine: Machine) -> str:
    with Netlink(machine.netns) as netlink:
        return netlink.get_link("flannel-v6.1").mac


def test_without_ipv6_ranges_its_device_and_routes_go(lan: Lan, tmp_path: Path) -> None:
    give(lan, "dual")
    cluster = Cluster(lan, tmp_path)
    cluster.sync()
    for machine in lan.nodes:
        machine.pod_cidrs = (machine.pod_cidr,)
    assert cluster.sync() == []
    with Netlink(lan.nodes[0].netns) as netlink:
        assert netlink.find_link("flannel-v6.1") is None
    assert [route.destination.version for route in lan.nodes[0].run(routes)] == [4]


def test_a_node_without_an_ipv6_address_says_so_and_carries_ipv4(lan: Lan, tmp_path: Path) -> None:
    give(lan, "dual")
    one, two = lan.nodes
    two.ips = (two.ip,)
    (said,) = Cluster(lan, tmp_path).sync()[:1]
    assert said
    pod1, _ = one.add_pod_of("p1", mtu=1430)
    _, ips2 = two.add_pod_of("p2", mtu=1430)
    assert ping(pod1, ips2[0])
