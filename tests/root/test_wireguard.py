"""Two nodes and WireGuard between them, on a kernel that has it; pyroute2 is the witness."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
from collections.abc import Callable
from pathlib import Path

import pytest
from lan import Lan, ping, udp_source
from overlays import Cluster, routes
from pyroute2 import WireGuard as Witness

from agent.explain import netcommand, nettables
from host import netns, processes, rtnl
from host.errors import Unsupported
from host.netlink import Netlink
from host.wireguard import Tunnel, WireGuard

DEVICE = "flannel-wg"


def missing(make: Callable[[str], Path]) -> bool:
    """Whether this kernel has no WireGuard."""

    def attempt() -> bool:
        with Netlink() as netlink:
            try:
                netlink.execute(rtnl.add_wireguard("wg-try", mtu=1420))
            except Unsupported:
                return True
        return False

    return bool(netns.run_in(make("try"), attempt))


@pytest.fixture
def lan(new_netns: Callable[[str], Path], tmp_path: Path) -> Lan:
    if missing(new_netns):
        pytest.skip("this kernel has no WireGuard (CONFIG_WIREGUARD)")
    lan = Lan(new_netns, tmp_path)
    lan.add_node()
    lan.add_node()
    return lan


def seen(device: str = DEVICE) -> tuple[int, dict[str, tuple[str, list[str]]]]:
    """Port and peers of a device by pyroute2: public key → where it is, and its ranges."""
    with Witness() as witness:
        port, peers = 0, {}
        for message in witness.info(device):
            port = message.get_attr("WGDEVICE_A_LISTEN_PORT")
            for peer in message.get_attr("WGDEVICE_A_PEERS") or ():
                ranges = [each["addr"] for each in peer.get_attr("WGPEER_A_ALLOWEDIPS") or ()]
                endpoint = peer.get_attr("WGPEER_A_ENDPOINT")
                name = peer.get_attr("WGPEER_A_PUBLIC_KEY")
                peers[name.decode() if isinstance(name, bytes) else name] = (endpoint["addr"], ranges)
        return port, peers


def announced(cluster: Cluster, name: str) -> str:
    return str(cluster.annotations[name]["flannel.alpha.coreos.com/backend-data"])


def test_pods_of_two_nodes_reach_each_other(lan: Lan, tmp_path: Path) -> None:
    cluster = Cluster(lan, tmp_path, backend="wireguard")
    assert cluster.sync() == []
    one, two = lan.nodes
    pod1, ip1 = one.add_pod("p1", mtu=1420)
    pod2, ip2 = two.add_pod("p2", mtu=1420)
    assert ping(pod1, ip2) and ping(pod2, ip1)
    assert ping(one.netns, ip2), "node to a pod on another node"
    assert ping(pod1, ip2, size=1420 - 28), "a packet of the full pod MTU passes unfragmented"
    assert udp_source(pod1, pod2, ip2) == ip1, "no address translation between pods"
    port, peers = one.run(seen)
    assert port == 51820
    (key,) = peers
    assert peers[key] == (two.ip, [two.pod_cidr]) and key in announced(cluster, "node2")
    assert [(str(r.destination), r.gateway) for r in one.run(routes)] == [(two.pod_cidr, None)]
    shown = one.run(lambda: netcommand.peers(nettables.read())).splitlines()[1].split()
    assert shown == [two.pod_cidr, DEVICE, "-", two.ip]


def test_what_is_deleted_comes_back_with_its_key(lan: Lan, tmp_path: Path) -> None:
    cluster = Cluster(lan, tmp_path, backend="wireguard")
    cluster.sync()
    one, two = lan.nodes
    pod1, _ = one.add_pod("p1", mtu=1420)
    _, ip2 = two.add_pod("p2", mtu=1420)
    before = announced(cluster, "node1")
    for spoil in (f"ip link del {DEVICE}", f"ip link set {DEVICE} down", "ip route flush proto 110"):
        one.run(lambda spoil=spoil: processes.run(spoil.split()))
        assert not ping(pod1, ip2, timeout=0.3), spoil
        assert cluster.sync(1) == [], spoil
        assert ping(pod1, ip2), spoil
    assert announced(cluster, "node1") == before

    def forget() -> None:
        (key,) = seen()[1]
        with Witness() as witness:
            witness.set(DEVICE, peer={"public_key": key, "remove": True})

    one.run(forget)
    assert not ping(pod1, ip2, timeout=0.3)
    assert cluster.sync(1) == []
    assert ping(pod1, ip2)


def test_a_peer_with_another_key_is_followed_and_one_that_leaves_is_gone(lan: Lan, tmp_path: Path) -> None:
    cluster = Cluster(lan, tmp_path, backend="wireguard")
    cluster.sync()
    one, two = lan.nodes
    pod1, _ = one.add_pod("p1", mtu=1420)
    _, ip2 = two.add_pod("p2", mtu=1420)
    (old,) = one.run(seen)[1]
    (two.state / f"{DEVICE}.key").unlink()
    assert cluster.sync() == []
    (new,) = one.run(seen)[1]
    assert new != old and ping(pod1, ip2)
    cluster.left.add(two.name)
    one.run(lambda: asyncio.run(cluster._once(one)))
    assert one.run(seen)[1] == {} and one.run(routes) == []


def test_dual_stack_has_a_device_for_each(lan: Lan, tmp_path: Path) -> None:
    for machine in lan.nodes:
        machine.pod_cidrs = (machine.pod_cidr, machine.pod_cidr6)
    cluster = Cluster(lan, tmp_path, backend="wireguard")
    assert cluster.sync() == []
    one, two = lan.nodes
    pod1, _ = one.add_pod_of("p1", mtu=1420)
    _, (ip2, six2) = two.add_pod_of("p2", mtu=1420)
    assert ping(pod1, ip2) and ping(pod1, six2)
    port, peers = one.run(lambda: seen("flannel-wg-v6"))
    assert port == 51821 and list(peers.values()) == [(two.ip6, [two.pod_cidr6])]


def test_many_peers_are_set_in_one_go(lan: Lan) -> None:
    """More than the 64 KiB of one netlink attribute hold."""
    one = lan.nodes[0]

    def fill() -> tuple[int, int]:
        tunnels = [
            Tunnel(
                base64.b64encode(number.to_bytes(32, "big")).decode(),
                ipaddress.ip_address(f"192.0.2.{number % 250 + 1}"),
                51820,
                (ipaddress.ip_network(f"10.{number >> 8}.{number & 255}.0/24"),),
            )
            for number in range(1, 1001)
        ]
        with Netlink() as netlink, WireGuard() as wireguard:
            netlink.execute(rtnl.add_wireguard("wg0", mtu=1420))
            wireguard.set_key("wg0", bytes(range(32)), 51999)
            wireguard.set_tunnels("wg0", tunnels)
            facts = wireguard.facts("wg0")
            assert facts.tunnels == frozenset(tunnels) and facts.port == 51999
            wireguard.set_tunnels("wg0", tunnels[1:], remove=True)
            return len(facts.tunnels), len(wireguard.facts("wg0").tunnels)

    assert one.run(fill) == (1000, 1)


def test_a_kernel_without_it_is_told(new_netns: Callable[[str], Path], tmp_path: Path) -> None:
    if not missing(new_netns):
        pytest.skip("this kernel has WireGuard")
    lan = Lan(new_netns, tmp_path)
    lan.add_node()
    (said,) = Cluster(lan, tmp_path, backend="wireguard").sync(1)
    assert said == (
        f"add wireguard {DEVICE}: operation not supported: this kernel has no WireGuard "
        "(modprobe wireguard); set overlay.backend to vxlan"
    )
