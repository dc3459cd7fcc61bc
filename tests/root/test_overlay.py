"""Two nodes and a VXLAN overlay between them, in real namespaces."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from lan import Lan, ping, udp_source
from overlays import Cluster, routes

from agent.api.structs import NodeAddress, NodeStatus
from agent.overlay import offload
from agent.overlay.mtu import SMALL, IcmpEcho, find_narrow
from agent.overlay.reset import reset
from agent.overlay.settings import OverlaySettings
from agent.policy.rules import TABLE
from cni import vxlan
from host import ethtool, netns, processes, rtnl
from host.errors import NotFound
from host.netlink import Netlink
from host.rules import nft


@pytest.fixture
def lan(new_netns: Callable[[str], Path], tmp_path: Path) -> Lan:
    lan = Lan(new_netns, tmp_path)
    lan.add_node()
    lan.add_node()
    return lan


def test_pods_of_two_nodes_reach_each_other(lan: Lan, tmp_path: Path) -> None:
    cluster = Cluster(lan, tmp_path)
    assert cluster.sync() == []
    one, two = lan.nodes
    pod1, ip1 = one.add_pod("p1")
    pod2, ip2 = two.add_pod("p2")
    assert ping(pod1, ip2)
    assert ping(pod2, ip1)
    assert ping(one.netns, ip2), "node to a pod on another node"
    assert ping(pod1, two.ip), "pod to another node"
    assert ping(pod1, ip2, size=1450 - 28), "a packet of the full pod MTU passes unfragmented"
    assert not ping(pod1, ip2, size=1472 - 28, timeout=0.3)
    assert udp_source(pod1, pod2, ip2) == ip1, "no address translation between pods"
    assert udp_source(pod1, two.netns, two.ip) == ip1, "nor towards nodes"


@pytest.mark.parametrize("backend", ["host-gw", "vxlan"])
def test_direct_routes(lan: Lan, tmp_path: Path, backend: str) -> None:
    cluster = Cluster(lan, tmp_path, backend=backend, direct_routing=True)
    assert cluster.sync() == []
    one, two = lan.nodes
    pod1, _ip1 = one.add_pod("p1")
    _pod2, ip2 = two.add_pod("p2")
    assert ping(pod1, ip2)
    found = one.run(routes)
    assert [(str(r.destination), str(r.gateway), r.onlink) for r in found] == [
        ("10.244.2.0/24", "192.0.2.12", False)
    ]


def test_nodes_that_write_no_annotations_are_reached_by_plain_routes(lan: Lan, tmp_path: Path) -> None:
    """kindnet's nodes (row A02): a route to every node's podCIDR by its InternalIP, and nothing announced."""
    one, two = lan.nodes
    internal = NodeStatus(addresses=(NodeAddress(type="InternalIP", address=two.ip),))
    cluster = Cluster(lan, tmp_path, backend="host-gw", masquerade_to_nodes=True)
    cluster.foreign[two.name] = internal
    assert one.run(lambda: asyncio.run(cluster._once(one))) == ""
    two.run(lambda: processes.run(f"ip route add {one.pod_cidr} via {one.ip}".split()))
    pod1, ip1 = one.add_pod("p1")
    pod2, ip2 = two.add_pod("p2")
    assert ping(pod1, ip2) and ping(pod2, ip1)
    assert udp_source(pod1, pod2, ip2) == ip1
    assert [(str(r.destination), str(r.gateway)) for r in one.run(routes)] == [(two.pod_cidr, two.ip)]


def test_deleted_device_comes_back_with_its_mac(lan: Lan, tmp_path: Path) -> None:
    cluster = Cluster(lan, tmp_path)
    cluster.sync()
    one, two = lan.nodes
    pod1, _ = one.add_pod("p1")
    _, ip2 = two.add_pod("p2")
    with Netlink(one.netns) as netlink:
        before = netlink.get_link("flannel.1").mac
        netlink.execute(rtnl.delete_link("flannel.1"))
        assert not ping(pod1, ip2, timeout=0.2)
        assert cluster.sync(1) == []
        assert netlink.get_link("flannel.1").mac == before
    assert ping(pod1, ip2)


@pytest.mark.parametrize(
    "spoil",
    ["ip addr flush dev cbr0", "ip link set cbr0 down", "ip link set PORT nomaster", "ip link del cbr0"],
)
def test_the_pods_bridge_gets_back_what_it_lost(lan: Lan, tmp_path: Path, spoil: str) -> None:
    cluster = Cluster(lan, tmp_path)
    cluster.sync()
    one, two = lan.nodes
    pod1, ip1 = one.add_pod("p1")
    _, ip2 = two.add_pod("p2")
    assert ping(pod1, ip2)
    with Netlink(one.netns) as netlink:
        (port,) = (link for link in netlink.links() if link.kind == "veth" and link.master)
        before = netlink.get_link("cbr0")
        one.run(lambda: processes.run(spoil.replace("PORT", port.name).split()))
        assert not ping(pod1, ip2, timeout=0.2)
        assert cluster.sync(1) == []
        after, mended = netlink.get_link("cbr0"), netlink.get_link(port.name)
    assert (after.mac, after.mtu, mended.master, mended.hairpin) == (
        before.mac,
        before.mtu,
        after.index,
        True,
    )
    assert ping(pod1, ip2)
    assert ping(two.netns, ip1)


def test_a_node_without_pods_gets_no_bridge_from_the_overlay(lan: Lan, tmp_path: Path) -> None:
    Cluster(lan, tmp_path).sync()
    with Netlink(lan.nodes[0].netns) as netlink:
        assert netlink.find_link("cbr0") is None


def test_node_that_leaves_takes_its_entries_along(lan: Lan, tmp_path: Path) -> None:
    cluster = Cluster(lan, tmp_path)
    cluster.sync()
    cluster.left.add("node2")
    one = lan.nodes[0]
    one.run(lambda: asyncio.run(cluster._once(one)))
    with Netlink(one.netns) as netlink:
        device = netlink.get_link("flannel.1").index
        assert netlink.routes(protocol=vxlan.ROUTE_PROTOCOL) == []
        assert [n for n in netlink.neighbours(device) if n.state & rtnl.NUD_PERMANENT and n.address] == []
        assert netlink.fdb(device) == []


def test_device_as_ip_link_shows_it(lan: Lan, tmp_path: Path) -> None:
    Cluster(lan, tmp_path).sync()
    shown = lan.nodes[0].run(lambda: processes.run(["ip", "-d", "link", "show", "flannel.1"]).stdout.decode())
    assert "vxlan id 1 local 192.0.2.11 dev eth0 srcport 0 0 dstport 8472 nolearning" in shown
    assert "mtu 1450" in shown


def test_device_of_another_kind_is_replaced(lan: Lan, tmp_path: Path) -> None:
    one = lan.nodes[0]
    with Netlink(one.netns) as netlink:
        netlink.execute(rtnl.add_bridge("flannel.1", mac="02:00:00:00:00:09"))
        assert Cluster(lan, tmp_path).sync() == []
        assert netlink.get_link("flannel.1").kind == "vxlan"


def test_changed_port_replaces_the_device(lan: Lan, tmp_path: Path) -> None:
    Cluster(lan, tmp_path).sync()
    cluster = Cluster(lan, tmp_path, port=4789)
    assert cluster.sync() == []
    pod1, _ = lan.nodes[0].add_pod("p1")
    _, ip2 = lan.nodes[1].add_pod("p2")
    assert ping(pod1, ip2)


def test_rules_come_back_after_a_flush(lan: Lan, tmp_path: Path) -> None:
    cluster = Cluster(lan, tmp_path)
    cluster.sync()
    one = lan.nodes[0]

    def rules() -> str:
        return processes.run(["iptables-save"]).stdout.decode()

    before = one.run(rules)
    one.run(lambda: processes.run(["iptables", "-t", "nat", "-F"]))
    one.run(lambda: processes.run(["iptables", "-F"]))
    cluster.sync(1)
    assert _plain(one.run(rules)) == _plain(before)


def test_it_steps_back_for_another_network_and_returns(lan: Lan, tmp_path: Path) -> None:
    """In front of flannel's configuration no route and no rule of ours is left; it goes, and all is back."""
    cluster = Cluster(lan, tmp_path)
    cluster.sync()
    one = lan.nodes[0]

    def rules() -> str:
        return processes.run(["iptables-save"]).stdout.decode()

    before, there = _plain(one.run(rules)), one.run(routes)
    theirs = one.state / "net.d" / "10-flannel.conflist"
    theirs.write_text('{"name": "cbr0", "plugins": [{"type": "flannel"}]}')
    assert cluster.sync(1) == []
    assert "NODELET" not in one.run(rules)
    assert one.run(routes) == []
    theirs.unlink()
    cluster.sync(1)
    assert _plain(one.run(rules)) == before
    assert one.run(routes) == there != []


def _plain(text: str) -> list[str]:
    return sorted(line for line in text.splitlines() if line.startswith("-A"))


def test_work_inside_a_namespace_leaves_the_caller_where_it_was(new_netns: Callable[[str], Path]) -> None:
    path, before = new_netns("n"), netns.identity()
    assert netns.run_in(path, netns.identity) == netns.identity(path)
    assert netns.identity() == before


def test_narrow_path_is_noticed(new_netns: Callable[[str], Path], tmp_path: Path) -> None:
    lan = Lan(new_netns, tmp_path)
    one, good, narrow = lan.add_node(), lan.add_node(), lan.add_node()
    lan.narrow(narrow, 1400)
    peers = {machine.name: ipaddress.ip_address(machine.ip) for machine in (good, narrow)}

    async def probe() -> dict[str, str]:
        with IcmpEcho() as echo:
            return await find_narrow(peers, 1500, echo)

    assert list(one.run(lambda: asyncio.run(probe()))) == [narrow.name]


def drop_unfinished_checksums(source: str, target: str) -> str:
    """A rule that drops our datagrams in VXLAN whose inner checksum covers the pseudo header alone.

    That is what leaves a device that was told to finish checksums and does not (RFC 768, skbuff.h).
    """
    length = 8 + len(offload.MESSAGE)
    pseudo = b"".join(ipaddress.ip_address(text).packed for text in (source, target))
    pseudo += struct.pack("!BBH", 0, socket.IPPROTO_UDP, length)
    total = sum(struct.unpack("!6H", pseudo))
    unfinished = (total & 0xFFFF) + (total >> 16)
    inner = (8 + 8 + 14 + 20 + 6) * 8  # bits: UDP, VXLAN, Ethernet, IPv4, and where UDP has its checksum
    return f"udp dport 8472 @th,{inner},16 {unfinished:#06x} counter drop"


@pytest.mark.parametrize("broken", [True, False])
def test_a_checksum_offload_that_lies_is_turned_off(lan: Lan, tmp_path: Path, broken: bool) -> None:
    assert Cluster(lan, tmp_path).sync() == []
    one, two = lan.nodes
    source, target = "10.244.1.0", "10.244.2.0"
    rule = drop_unfinished_checksums(source, target) if broken else "counter"
    hook = "type filter hook prerouting priority -400"
    table = f"table ip broken {{\n chain c {{\n {hook};\n {rule}\n }}\n}}\n"
    two.run(lambda: processes.run(["nft", "-f", "-"], input=table.encode()))

    async def look() -> bool:
        with IcmpEcho() as echo:
            return await offload.mend(
                [ipaddress.ip_address(target)],
                echo=lambda host: echo(host, SMALL),
                datagram=offload.datagram,
                offload=lambda on: ethtool.set_transmit_checksums("flannel.1", on),
            )

    assert one.run(lambda: ethtool.transmit_checksums("flannel.1")) is True
    assert one.run(lambda: asyncio.run(look())) is broken
    assert one.run(lambda: ethtool.transmit_checksums("flannel.1")) is not broken
    assert one.run(lambda: asyncio.run(look())) is False, "datagrams arrive"


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(NotFound, match="ask no-such-device for its checksum offload"):
        ethtool.transmit_checksums("no-such-device")


def test_reset_leaves_the_node_as_it_was(lan: Lan, tmp_path: Path) -> None:
    one = lan.nodes[0]

    def shown() -> tuple[object, ...]:
        with Netlink() as netlink:
            links, routes = [link.name for link in netlink.links()], netlink.routes()
        policies = nft.read("inet", TABLE)
        return links, routes, _plain(processes.run(["iptables-save"]).stdout.decode()), policies

    before = one.run(shown)
    Cluster(lan, tmp_path).sync()
    one.add_pod(
        "p1", runtimeConfig={"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]}
    )
    one.run(lambda: nft.apply(f"add table inet {TABLE}\n"))
    assert one.run(shown)[-1] is not None
    settings = OverlaySettings(conf_dir=str(one.state / "net.d"), state_dir=str(one.state))
    assert one.run(lambda: reset(settings))
    assert one.run(shown) == before
    assert one.run(lambda: reset(settings)) == []


def test_strict_reverse_path_filter_does_not_cut_nodes_off(lan: Lan, tmp_path: Path) -> None:
    def strict() -> None:
        Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text("1")

    for machine in lan.nodes:
        machine.run(strict)
    Cluster(lan, tmp_path).sync()
    pod, _ = lan.nodes[0].add_pod("p1")
    assert ping(pod, lan.nodes[1].ip)
