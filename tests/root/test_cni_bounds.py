"""What a pod can do to the others on its bridge: not speak in their name, not send faster than it may."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cnikit import call
from lan import Lan, Machine, ping, udp_source

from cni.bandwidth import shaper_name
from cni.config import Attachment, mac_for
from cni.wiring import host_name
from host import netns, processes, rtnl
from host.netlink import Netlink

Make = Callable[[str], Path]
FREE = {"spoofProtection": False}
BOTH = {"subnets": ["10.244.1.0/24", "fd00:1::/64"], "clusterCIDRs": ["10.244.0.0/16", "fd00::/16"]}


@pytest.fixture
def node(new_netns: Make, tmp_path: Path) -> Machine:
    """One node on a LAN of its own."""
    return Lan(new_netns, tmp_path).add_node()


def first_source(sender: Path, forged: str, victim: Path, target: str) -> str:
    """The source of the first datagram that arrives, of a forged one and an honest one sent in this order."""
    with Netlink(sender) as netlink:
        eth0 = netlink.get_link("eth0").index
        netlink.execute(rtnl.address(eth0, ipaddress.ip_interface(f"{forged}/24")))
    with (
        netns.open_socket(victim, socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        netns.open_socket(sender, socket.AF_INET, socket.SOCK_DGRAM) as forger,
        netns.open_socket(sender, socket.AF_INET, socket.SOCK_DGRAM) as honest,
    ):
        receiver.bind(("0.0.0.0", 5353))
        receiver.settimeout(60)
        forger.bind((forged, 0))
        for each in (forger, honest):
            each.sendto(b"hello", (target, 5353))
        return str(receiver.recvfrom(100)[1][0])


@pytest.mark.parametrize("config", [{}, FREE], ids=["guarded", "free"])
def test_a_pod_cannot_send_from_an_address_of_another(node: Machine, config: dict[str, Any]) -> None:
    attacker, own = node.add_pod("attacker", **config)
    victim, target = node.add_pod("victim", **config)
    assert ping(attacker, target), "neighbours are known before"
    forged = "10.244.1.99"
    assert first_source(attacker, forged, victim, target) == (forged if config else own)


def announcement(mac: str, ip: ipaddress.IPv4Address) -> bytes:
    """A frame that tells everybody that `ip` is at `mac` now: a gratuitous ARP request."""
    source = rtnl.mac_bytes(mac)
    head = b"\xff" * 6 + source + b"\x08\x06" + b"\x00\x01\x08\x00\x06\x04\x00\x01"
    return head + source + ip.packed + bytes(6) + ip.packed


@pytest.mark.parametrize("config", [{}, FREE], ids=["guarded", "free"])
def test_a_pod_cannot_take_the_gateways_place(node: Machine, config: dict[str, Any]) -> None:
    attacker, own = node.add_pod("attacker", **config)
    victim, target = node.add_pod("victim", **config)
    gateway = ipaddress.IPv4Address("10.244.1.1")
    assert ping(victim, str(gateway)) and ping(attacker, target)
    mac = mac_for(ipaddress.ip_address(own))
    with netns.open_socket(attacker, socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        raw.bind(("eth0", 0))
        raw.send(announcement(mac, gateway))
    assert udp_source(attacker, victim, target) == own, "what was sent before has been delivered"
    with Netlink(victim) as netlink:
        eth0 = netlink.get_link("eth0").index
        known = {entry.address: entry.mac for entry in netlink.neighbours(eth0)}
    assert (known[gateway] == mac) == bool(config)


def received_types(sender: Path, receiver: Path, types: list[int]) -> list[int]:
    """Of ICMPv6 messages to all nodes that a pod sends in this order, those that come up to the last one."""
    with (
        netns.open_socket(receiver, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as inbox,
        netns.open_socket(sender, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as outbox,
    ):
        inbox.settimeout(60)
        index = netns.run_in(sender, lambda: socket.if_nametoindex("eth0"))
        for kind in types:
            outbox.sendto(bytes([kind]) + b"\0" * 23, ("ff02::1", 0, 0, index))
        found = []
        while not found or found[-1] != types[-1]:
            message = inbox.recv(2000)
            if message[0] in types:
                found.append(message[0])
        return found


def test_no_router_advertisement_leaves_a_pod(node: Machine) -> None:
    """Whoever can send one is everybody's gateway (CVE-2020-10749); the pods do not listen to it either."""
    pod, _ = node.add_pod("p1", **BOTH)
    other, _ = node.add_pod("p2", **BOTH)
    for where, device in ((pod, "eth0"), (other, "eth0"), (node.netns, "cbr0")):
        path = Path(f"/proc/sys/net/ipv6/conf/{device}/accept_ra")
        assert netns.run_in(where, path.read_text) == "0\n"
    assert received_types(pod, other, [134, 128]) == [128], "what was sent first does not come"


def port(name: str) -> str:
    """The host end of a pod."""
    return host_name(Attachment(name, "eth0"))


def test_dual_stack_pods_reach_each_other_past_the_guard(node: Machine) -> None:
    pods = [node.add_pod(name, **BOTH)[0] for name in ("p1", "p2")]
    with (
        netns.open_socket(pods[0], socket.AF_INET6, socket.SOCK_DGRAM) as sender,
        netns.open_socket(pods[1], socket.AF_INET6, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("::", 5353))
        receiver.settimeout(60)
        sender.sendto(b"hello", ("fd00:1::3", 5353))
        assert receiver.recvfrom(100)[1][0] == "fd00:1::2"


def received(sender: Path, receiver: Path, target: str, *, count: int) -> int:
    """How many datagrams of 1,000 bytes arrive of `count` sent at once, and then one more."""
    with (
        netns.open_socket(receiver, socket.AF_INET, socket.SOCK_DGRAM) as inbox,
        netns.open_socket(sender, socket.AF_INET, socket.SOCK_DGRAM) as outbox,
    ):
        inbox.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        inbox.bind(("0.0.0.0", 5353))
        for _ in range(count):
            outbox.sendto(b"x" * 1000, (target, 5353))
        found = 0
        inbox.settimeout(1)
        try:
            while inbox.recv(2000):
                found += 1
        except TimeoutError:
            return found


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_a_pods_rate_is_limited(node: Machine, direction: str) -> None:
    """A bucket of 64 KiB that fills at 1 kB a second: of 600 kB at once nine tenths are lost."""
    limits = {f"{direction}Rate": 8000, f"{direction}Burst": 8 * 65536}
    limited, ip = node.add_pod("limited", runtimeConfig={"bandwidth": limits})
    free, free_ip = node.add_pod("free")
    assert ping(free, ip) and ping(free, free_ip)
    ways = {"ingress": (free, limited, ip), "egress": (limited, free, free_ip)}
    back = ways.pop({"ingress": "egress", "egress": "ingress"}[direction])
    assert received(*ways[direction], count=600) < 300
    assert received(*back, count=600) == 600, "the other direction has no limit"
    call(node, "DEL", "limited", limited)
    with Netlink(node.netns) as netlink:
        assert [link.name for link in netlink.links() if link.kind == "ifb"] == []


def test_a_shaper_whose_pod_is_gone_is_collected(node: Machine) -> None:
    limits = {"bandwidth": {"egressRate": 10**7, "egressBurst": 10**6}}
    pod, _ = node.add_pod("lost", runtimeConfig=limits)
    node.add_pod("kept", runtimeConfig=limits)
    shown = node.run(lambda: processes.run(["tc", "-j", "qdisc", "show", "dev", shaper("lost")]))
    assert json.loads(shown.stdout)[0]["options"]["rate"] == 10**7 // 8
    netns.delete(pod)
    with Netlink(node.netns) as netlink:
        netlink.execute(rtnl.delete_link(port("lost")))
    valid = {"cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}]}
    assert call(node, "GC", "", **valid) == {}
    with Netlink(node.netns) as netlink:
        assert [link.name for link in netlink.links() if link.kind == "ifb"] == [shaper("kept")]


def shaper(name: str) -> str:
    """The device that queues what a pod sends."""
    return shaper_name(Attachment(name, "eth0"))
