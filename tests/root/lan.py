"""Machines for tests: network namespaces joined by a bridge in one more, and packets between them."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cni import entry
from host import netns, rtnl
from host.netlink import Netlink
from host.rtnl import Route

IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_PMTUDISC_PROBE = 10, 2, 3
IPV6_MTU_DISCOVER, IPV6_DONTFRAG = 23, 62
POD_NETWORKS = ("10.244.0.0/16", "fd00:10:244::/48")


class Lan:
    """A switch namespace with nodes 192.0.2.11 (and 2001:db8::11), .12, … with default routes to nobody."""

    def __init__(self, make: Callable[[str], Path], directory: Path) -> None:
        self._make = make
        self._directory = directory
        self.switch = make("switch")
        self.nodes: list[Machine] = []
        netns.run_in(self.switch, _make_switch)

    def add_node(self, *, mtu: int = 1500, neighbour_mac: str = "") -> Machine:
        """One more node."""
        number = len(self.nodes) + 1
        path = self._make(f"node{number}")
        fd = netns.open_netns(path)

        def wire() -> None:
            with Netlink() as netlink:
                switch = netlink.get_link("switch0")
                netlink.execute(
                    rtnl.add_veth(f"port{number}", peer="eth0", peer_netns=fd, mtu=mtu, master=switch.index)
                )

        def configure() -> None:
            with Netlink() as netlink:
                netlink.execute(rtnl.set_link("lo", up=True), rtnl.set_link("eth0", up=True))
                index = netlink.get_link("eth0").index
                gateway = ipaddress.ip_address("192.0.2.254")
                default = Route(ipaddress.ip_network("0.0.0.0/0"), index, gateway)
                own = ipaddress.ip_interface(f"192.0.2.{10 + number}/24")
                own6 = ipaddress.ip_interface(f"2001:db8::{10 + number}/64")
                netlink.execute(rtnl.address(index, own), rtnl.address(index, own6), rtnl.route(default))

        def settle() -> None:
            with Netlink() as netlink:  # asking for a device makes the kernel finish its carrier change
                netlink.get_link(f"port{number}")
                netlink.get_link("switch0")

        netns.run_in(self.switch, wire)
        netns.run_in(path, configure)
        netns.run_in(self.switch, settle)
        os.close(fd)
        node = Machine(number, path, self._directory / f"node{number}", self._make)
        self.nodes.append(node)
        return node

    def narrow(self, node: Machine, mtu: int) -> None:
        """Let the switch drop, silently, what is larger than `mtu` on its way to a node."""

        def shrink() -> None:
            with Netlink() as netlink:
                netlink.execute(rtnl.set_link(f"port{node.number}", mtu=mtu))

        netns.run_in(self.switch, shrink)


def _make_switch() -> None:
    with Netlink() as netlink:
        netlink.execute(rtnl.add_bridge("switch0", mac="02:00:00:00:00:01"), rtnl.set_link("lo", up=True))


class Machine:
    """One node: its namespace, its address, its pod range, and pods made by our plugin."""

    def __init__(self, number: int, path: Path, state: Path, make: Callable[[str], Path]) -> None:
        self.number, self.netns, self.state, self._make = number, path, state, make
        self.name, self.ip = f"node{number}", f"192.0.2.{10 + number}"
        self.ip6, self.pod_cidr6 = f"2001:db8::{10 + number}", f"fd00:10:244:{number}::/64"
        self.pod_cidr = f"10.244.{number}.0/24"
        self.pod_cidrs: tuple[str, ...] = (self.pod_cidr,)
        self.ips: tuple[str, ...] = (self.ip, self.ip6)

    def run(self, work: Callable[[], Any]) -> Any:
        """Run something on this node."""
        return netns.run_in(self.netns, work)

    def config(self, **more: Any) -> dict[str, Any]:
        """The plugin's configuration here."""
        return {
            "cniVersion": "1.1.0",
            "name": "nodelet",
            "type": "nodelet-cni",
            "subnets": list(self.pod_cidrs),
            "clusterCIDRs": list(POD_NETWORKS),
            "mtu": 1450,
            "stateDir": str(self.state),
            **more,
        }

    def add_pod(self, name: str, **more: Any) -> tuple[Path, str]:
        """A pod's namespace and its (first) address."""
        path, (first, *_) = self.add_pod_of(name, **more)
        return path, first

    def add_pod_of(self, name: str, **more: Any) -> tuple[Path, list[str]]:
        """A pod's namespace and its addresses, in the order of the node's ranges."""
        path = self._make(f"{self.name}-{name}")
        result = self.run(
            lambda: entry.execute(
                "ADD",
                config=self.config(**more),
                container_id=name,
                netns=str(path),
                ifname="eth0",
                args={"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": name},
            )
        )
        return path, [ip["address"].split("/")[0] for ip in result["ips"]]


def ping(where: Path, target: str, *, size: int = 56, timeout: float = 3.0) -> bool:
    """Whether an ICMP echo of `size` bytes, not to be fragmented, comes back."""
    if ":" in target:
        return _ping6(where, target, size, timeout)
    with netns.open_socket(where, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        sock.settimeout(timeout)
        identity, payload = os.getpid() & 0xFFFF, b"x" * size
        header = struct.pack("!BBHHH", 8, 0, 0, identity, 1)
        message = struct.pack("!BBHHH", 8, 0, _checksum(header + payload), identity, 1) + payload
        try:
            sock.sendto(message, (target, 0))
            while True:
                data, sender = sock.recvfrom(65535)
                if sender[0] == target and data[20] == 0 and data[24:26] == header[4:6]:
                    return True
        except (TimeoutError, OSError):
            return False


def _ping6(where: Path, target: str, size: int, timeout: float) -> bool:
    with netns.open_socket(where, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_PROBE)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_DONTFRAG, 1)
        sock.settimeout(timeout)
        identity = struct.pack("!HH", os.getpid() & 0xFFFF, 1)
        try:  # the kernel fills in the checksum of ICMPv6
            sock.sendto(b"\x80\0\0\0" + identity + b"x" * size, (target, 0))
            while True:
                data, sender = sock.recvfrom(65535)
                if sender[0] == target and data[0] == 129 and data[4:8] == identity:
                    return True
        except (TimeoutError, OSError):
            return False


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def udp_source(client: Path, server: Path, target: str, port: int = 5353) -> str:
    """The source address under which `server` sees a datagram that `client` sends to `target`."""
    family, anything = (socket.AF_INET6, "::") if ":" in target else (socket.AF_INET, "0.0.0.0")
    with (
        netns.open_socket(server, family, socket.SOCK_DGRAM) as receiver,
        netns.open_socket(client, family, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((anything, port))
        receiver.settimeout(60)
        sender.sendto(b"who am I", (target, port))
        return str(receiver.recvfrom(100)[1][0])
