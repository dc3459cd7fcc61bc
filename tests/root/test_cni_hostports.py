"""Host ports on real namespaces: from everywhere, on one address, beside each other, and after a flush."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cnikit import call
from lan import Lan, Machine

from cni import hostports
from host import netns, processes, rtnl
from host.netlink import Netlink
from host.rtnl import Route

Make = Callable[[str], Path]


@pytest.fixture
def node(new_netns: Make, tmp_path: Path) -> Machine:
    """One node on a LAN of its own."""
    return Lan(new_netns, tmp_path).add_node()


def port(host_port: int, container_port: int, protocol: str = "tcp", **more: Any) -> dict[str, Any]:
    """runtimeConfig with one port mapping."""
    mapping = {"hostPort": host_port, "containerPort": container_port, "protocol": protocol, **more}
    return {"runtimeConfig": {"portMappings": [mapping]}}


def tcp_answer(client: Path, target: str, target_port: int, server: Path, listen: int = 80) -> str:
    """The client's address as the server sees it; '' where no connection comes about."""
    with (
        netns.open_socket(server, socket.AF_INET, socket.SOCK_STREAM) as listener,
        netns.open_socket(client, socket.AF_INET, socket.SOCK_STREAM) as caller,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", listen))
        listener.listen(1)
        listener.settimeout(1.0)
        caller.settimeout(1.0)
        try:
            caller.connect((target, target_port))
        except OSError:
            return ""
        accepted, sender = listener.accept()
        accepted.close()
        return str(sender[0])


def test_host_port_from_everywhere(new_netns: Make, tmp_path: Path) -> None:
    lan = Lan(new_netns, tmp_path)
    node, outside = lan.add_node(), lan.add_node()
    pod, _ip = node.add_pod("p1", **port(8080, 80))
    other, other_ip = node.add_pod("p2")
    assert tcp_answer(outside.netns, node.ip, 8080, pod) == outside.ip
    assert tcp_answer(other, node.ip, 8080, pod) == other_ip
    assert tcp_answer(pod, node.ip, 8080, pod), "a pod to its own host port"
    assert tcp_answer(node.netns, node.ip, 8080, pod), "the node to its own address"
    assert tcp_answer(node.netns, "127.0.0.1", 8080, pod), "the node to its loopback"
    call(node, "DEL", "p1", pod)
    again, _ = node.add_pod("p3", **port(8080, 80))
    assert tcp_answer(outside.netns, node.ip, 8080, again) == outside.ip
    call(node, "DEL", "p3", again)
    assert tcp_answer(outside.netns, node.ip, 8080, again) == ""
    rules = node.run(lambda: processes.run(["iptables-save"]).stdout.decode())
    assert "--dport 8080" not in rules


def test_host_port_on_one_address_and_udp(new_netns: Make, tmp_path: Path) -> None:
    lan = Lan(new_netns, tmp_path)
    node, outside = lan.add_node(), lan.add_node()
    mapping = port(9000, 90, "UDP", hostIP=node.ip)
    first, _ = node.add_pod("p1", **mapping)
    with (
        netns.open_socket(outside.netns, socket.AF_INET, socket.SOCK_DGRAM) as client,
        netns.open_socket(first, socket.AF_INET, socket.SOCK_DGRAM) as old,
    ):
        old.bind(("0.0.0.0", 90))
        old.settimeout(2)
        client.sendto(b"1", (node.ip, 9000))
        assert old.recv(10) == b"1"
        call(node, "DEL", "p1", first)
        second, _ = node.add_pod("p2", **mapping)
        with netns.open_socket(second, socket.AF_INET, socket.SOCK_DGRAM) as new:
            new.bind(("0.0.0.0", 90))
            new.settimeout(2)
            client.sendto(b"2", (node.ip, 9000))
            assert new.recv(10) == b"2", "the same client's flow goes to the new pod"


def test_loopback_of_the_node_stays_closed(node: Machine) -> None:
    pod, _ = node.add_pod("p1", **port(8080, 80))
    with Netlink(pod) as netlink:
        eth0 = netlink.get_link("eth0").index
        loopback = ipaddress.ip_network("127.0.0.0/8")
        netlink.execute(
            rtnl.address(1, ipaddress.ip_interface("127.0.0.1/8"), remove=True),
            rtnl.route(Route(loopback, eth0, ipaddress.ip_address("10.244.1.1"))),
        )
    netns.run_in(pod, lambda: Path("/proc/sys/net/ipv4/conf/eth0/route_localnet").write_text("1"))
    assert tcp_answer(pod, "127.0.0.1", 10248, node.netns, listen=10248) == ""


def missing(node: Machine) -> bool:
    """Whether the rules were not as the records say; they are afterwards."""
    return node.run(lambda: hostports.assert_rules(node.state / "nodelet"))


def ported(node: Machine, *argv: str) -> list[str]:
    """The host ports that rules lead somewhere, in their order, after a command on the node."""
    node.run(lambda: processes.run(argv)) if argv else None
    rules = node.run(lambda: processes.run(["iptables-save", "-t", "nat"]).stdout.decode().splitlines())
    return [rule.partition("--dport ")[2].split()[0] for rule in rules if "-j DNAT" in rule]


def test_one_pod_more_or_less_leaves_the_rules_of_all_records(node: Machine) -> None:
    first, _ = node.add_pod("p1", **port(8080, 80))
    node.add_pod("p2", **port(8081, 80))
    node.add_pod("p3", **port(8080, 80))
    assert ported(node) == ["8080", "8081", "8080"], "the newest first: it has the port"
    assert not missing(node)
    call(node, "DEL", "p1", first)
    assert ported(node) == ["8080", "8081"]
    assert not missing(node)


@pytest.mark.parametrize("table", ["nat", "filter"])
def test_a_flush_is_noticed_by_the_next_pod(node: Machine, table: str) -> None:
    first, _ = node.add_pod("p1", **port(8080, 80))
    ported(node, "iptables", "-t", table, "-F")
    node.add_pod("p2", **port(8081, 80))
    assert ported(node) == ["8081", "8080"]
    assert not missing(node)
    ported(node, "iptables", "-t", table, "-F")
    call(node, "DEL", "p1", first)
    assert ported(node) == ["8081"]
    assert not missing(node)


def test_the_same_pod_twice_has_its_ports_once(node: Machine) -> None:
    pod, _ = node.add_pod("p1", **port(8080, 80))
    call(node, "ADD", "p1", pod, **port(8080, 80))
    assert ported(node) == ["8080"]
    assert not missing(node)
