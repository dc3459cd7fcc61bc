"""The plugin as the CNI specification has it: versions, chains, lying results, addresses of other plugins."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cnikit import call, leases, ports
from lan import Lan, Machine, ping, udp_source

from cni import errors
from cni.config import SUPPORTED_VERSIONS, Attachment
from cni.errors import CniError
from cni.wiring import host_name
from host import netns, processes, rtnl
from host.netlink import Netlink

Make = Callable[[str], Path]
BEFORE: dict[str, Any] = {
    "interfaces": [{"name": "dummy0"}, {"name": "net9", "sandbox": "/somewhere"}],
    "ips": [{"address": "192.168.7.2/24", "interface": 1}],
    "routes": [{"dst": "192.168.0.0/16"}],
    "dns": {"nameservers": ["192.168.7.1"]},
}


@pytest.fixture
def node(new_netns: Make, tmp_path: Path) -> Machine:
    """One node on a LAN of its own."""
    return Lan(new_netns, tmp_path).add_node()


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_a_whole_life_in_every_version(node: Machine, new_netns: Make, version: str) -> None:
    """As cnitool does it: ADD, CHECK where the version has it, DEL, each with the result before."""
    pod = new_netns("p")
    result = call(node, "ADD", "p", pod, cniVersion=version)
    assert result["cniVersion"] == version
    assert [name for name in result if name not in ("interfaces", "ips", "routes", "dns")] == ["cniVersion"]
    (address,) = result["ips"]
    expected = {"address": "10.244.1.2/24", "gateway": "10.244.1.1", "interface": 2}
    assert address == expected | ({} if version >= "1.0.0" else {"version": "4"})
    assert {"mtu" in interface for interface in result["interfaces"]} == {version == "1.1.0"}
    assert result["interfaces"][2]["sandbox"] == str(pod)
    later = {"cniVersion": version, "prevResult": result}
    if version < "0.4.0":
        with pytest.raises(CniError, match=f"cniVersion {version} has no CHECK") as caught:
            call(node, "CHECK", "p", pod, **later)
        assert caught.value.code == errors.INCOMPATIBLE_VERSION
    else:
        assert call(node, "CHECK", "p", pod, **later) == {}
    assert call(node, "DEL", "p", pod, **later) == {}
    assert (leases(node), ports(node)) == ({}, set())


def test_in_a_chain_the_result_before_is_kept(node: Machine, new_netns: Make) -> None:
    pod = new_netns("p")
    result = call(node, "ADD", "p", pod, prevResult=BEFORE)
    assert [entry["name"] for entry in result["interfaces"]][:2] == ["dummy0", "net9"]
    assert result["interfaces"][4]["name"] == "eth0"
    assert [(entry["address"], entry["interface"]) for entry in result["ips"]] == [
        ("192.168.7.2/24", 1),
        ("10.244.1.2/24", 4),
    ]
    assert [route["dst"] for route in result["routes"]] == ["192.168.0.0/16", "0.0.0.0/0"]
    assert result["dns"] == {"nameservers": ["192.168.7.1"]}
    assert call(node, "CHECK", "p", pod, prevResult=result) == {}
    assert call(node, "DEL", "p", pod, prevResult=result) == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda result: result["ips"][0].update(address="10.244.1.9/24"), "has not 10.244.1.2"),
        (lambda result: result["ips"][0].update(interface=0), "has not 10.244.1.2"),
        (lambda result: result["interfaces"][2].update(name="eth7"), "knows no eth0"),
        (lambda result: result["interfaces"][2].update(sandbox="/other"), "knows no eth0"),
    ],
)
def test_check_is_not_taken_in_by_a_result_that_lies(
    node: Machine, new_netns: Make, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    pod = new_netns("p")
    _other, other_ip = node.add_pod("other")
    result = call(node, "ADD", "p", pod)
    assert [result["ips"][0]["address"], other_ip] == ["10.244.1.3/24", "10.244.1.2"]
    change(result)
    with pytest.raises(CniError, match=words.replace("1.2", "1.3")) as caught:
        call(node, "CHECK", "p", pod, prevResult=result)
    assert caught.value.code == errors.CHECK_FAILED


def test_del_does_what_is_ours_whatever_the_result_says(node: Machine) -> None:
    pod, _ = node.add_pod("p")
    other, ip = node.add_pod("other")
    lie = {"interfaces": [{"name": "eth0", "sandbox": str(other)}], "ips": [{"address": f"{ip}/24"}]}
    assert call(node, "DEL", "p", pod, prevResult=lie) == {}
    assert leases(node) == {ip: "other"}
    assert ping(other, "10.244.1.1")


@pytest.mark.parametrize("hostile", [7, {"ips": [{"address": "10.244.1.9", "interface": 3}]}])
def test_a_result_that_is_none_is_refused_before_anything_is_done(
    node: Machine, new_netns: Make, hostile: object
) -> None:
    with pytest.raises(CniError, match="prevResult") as caught:
        call(node, "ADD", "p", new_netns("p"), prevResult=hostile)
    assert caught.value.code == errors.INVALID_CONFIG
    assert leases(node) == {}


def test_status_says_what_stands_in_the_way(node: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(node, "STATUS", "") == {}
    with Netlink(node.netns) as netlink, open(node.netns) as same:
        netlink.execute(rtnl.add_veth("taken", peer="taken1", peer_netns=same.fileno()))
    with pytest.raises(CniError, match="taken is a veth device, not a bridge") as caught:
        call(node, "STATUS", "", bridge="taken")
    assert caught.value.code == errors.NOT_AVAILABLE
    monkeypatch.setattr("host.processes.SAFE_PATH", "/nowhere")
    with pytest.raises(CniError, match="iptables is not installed"):
        call(node, "STATUS", "")
    with pytest.raises(CniError, match=r"1\.0\.0 has no STATUS"):
        call(node, "STATUS", "", cniVersion="1.0.0")


def test_an_address_that_is_asked_for(node: Machine, new_netns: Make) -> None:
    asked = {"runtimeConfig": {"ips": ["10.244.1.77"], "dns": {"servers": ["10.96.0.10"]}}}
    result = call(node, "ADD", "p", new_netns("p"), **asked)
    assert (result["ips"][0]["address"], result["dns"]) == (
        "10.244.1.77/24",
        {"nameservers": ["10.96.0.10"]},
    )
    with pytest.raises(CniError, match=r"lease 10\.244\.1\.77.*it belongs to p"):
        call(node, "ADD", "other", new_netns("other"), **asked)
    assert leases(node) == {"10.244.1.77": "p"}


@pytest.mark.parametrize(
    "asked",
    [
        {"runtimeConfig": {"mac": "02:00:00:00:00:AA", "aliases": ["web", "www"]}},
        {"args": {"cni": {"mac": "02:00:00:00:00:aa"}}},
    ],
)
def test_a_mac_that_is_asked_for(node: Machine, new_netns: Make, asked: dict[str, Any]) -> None:
    pod, other = new_netns("p"), node.add_pod("other")[0]
    result = call(node, "ADD", "p", pod, **asked)
    assert result["interfaces"][2]["mac"] == "02:00:00:00:00:aa"
    with Netlink(pod) as netlink:
        assert netlink.get_link("eth0").mac == "02:00:00:00:00:aa"
    assert ping(other, "10.244.1.3") and ping(pod, "10.244.1.1"), "the spoof guard knows it"
    assert call(node, "CHECK", "p", pod, **asked, prevResult=result) == {}
    note = (node.state / "nodelet" / "leases" / "10.244.1.3,p,eth0").read_text()
    assert ("web,www" in note) == ("runtimeConfig" in asked)


def host_local(folder: Path, *addresses: str, age: float = 0.0) -> None:
    """Files as host-local makes them."""
    network = folder / "cbr0"
    network.mkdir(parents=True, exist_ok=True)
    (network / "lock").touch()
    (network / "last_reserved_ip.0").write_text(addresses[-1])
    for address in addresses:
        (network / address).write_text("0123abcd\r\neth0")
        if age:
            os.utime(network / address, (age, age))


def test_addresses_of_host_local_are_left_alone_until_it_gives_them_back(
    node: Machine, new_netns: Make, tmp_path: Path
) -> None:
    folder = tmp_path / "networks"
    host_local(folder, "10.244.1.2", "10.244.1.4", "fd00::7")
    host_local(folder, "10.244.1.3", age=1000.0)  # of an earlier boot: leaked
    config = {"hostLocalDir": str(folder), "subnets": ["10.244.1.0/29"]}
    found = [node.add_pod(f"p{number}", **config)[1] for number in range(3)]
    assert found == ["10.244.1.3", "10.244.1.5", "10.244.1.6"]
    with pytest.raises(CniError, match=f"2 belong to pods of host-local \\({folder}\\)"):
        call(node, "ADD", "late", new_netns("late"), **config)
    with pytest.raises(CniError, match="a pod of another network plugin"):
        call(node, "ADD", "late", new_netns("l2"), **config, runtimeConfig={"ips": ["10.244.1.4"]})
    (folder / "cbr0" / "10.244.1.4").unlink()
    assert node.add_pod("p4", **config)[1] == "10.244.1.4"


def test_ranges_of_the_outside_that_see_pod_addresses(new_netns: Make, tmp_path: Path) -> None:
    lan = Lan(new_netns, tmp_path)
    node, outside, partner = lan.add_node(), lan.add_node(), lan.add_node()
    pod, ip = node.add_pod("p1", nonMasqueradeCIDRs=[f"{partner.ip}/32"])
    for machine in (outside, partner):
        with Netlink(machine.netns) as netlink:
            eth0 = netlink.get_link("eth0").index
            back = rtnl.Route(ipaddress.ip_network(node.pod_cidr), eth0, ipaddress.ip_address(node.ip))
            netlink.execute(rtnl.route(back))
    assert udp_source(pod, partner.netns, partner.ip) == ip
    assert udp_source(pod, outside.netns, outside.ip) == node.ip


def test_host_port_over_ipv6(new_netns: Make, tmp_path: Path) -> None:
    lan = Lan(new_netns, tmp_path)
    node, outside = lan.add_node(), lan.add_node()
    for machine, address in ((node, "fd00:9::1/64"), (outside, "fd00:9::2/64")):
        with Netlink(machine.netns) as netlink:
            eth0 = netlink.get_link("eth0").index
            netlink.execute(rtnl.address(eth0, ipaddress.ip_interface(address)))
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    both = {"subnets": ["10.244.1.0/24", "fd00:1::/64"], "runtimeConfig": {"portMappings": [mapping]}}
    pod, _ = node.add_pod("p1", **both)
    with (
        netns.open_socket(pod, socket.AF_INET6, socket.SOCK_STREAM) as listener,
        netns.open_socket(outside.netns, socket.AF_INET6, socket.SOCK_STREAM) as caller,
    ):
        listener.bind(("fd00:1::2", 80))
        listener.listen(1)
        caller.settimeout(60)
        caller.connect(("fd00:9::1", 8080))
    call(node, "DEL", "p1", pod, **both)
    for program in ("iptables-save", "ip6tables-save"):
        rules = node.run(lambda program=program: processes.run([program]).stdout)
        assert b"--dport" not in rules, "the last pod of a family takes its rules along"


@pytest.mark.parametrize("table", ["nat", "filter"])
def test_host_ports_mend_what_somebody_flushed(node: Machine, table: str) -> None:
    """With the next pod that has one; nodelet itself looks every 30 s."""

    def ports_of(number: int) -> dict[str, Any]:
        return {"runtimeConfig": {"portMappings": [{"hostPort": number, "containerPort": 80}]}}

    node.add_pod("p1", **ports_of(8001))
    whole = node.run(lambda: rules_of("nat") + rules_of("filter"))
    node.run(lambda: processes.run(["iptables", "-t", table, "-F"]))
    node.add_pod("p2", **ports_of(8002))
    call(node, "DEL", "p2", **ports_of(8002))
    mended = node.run(lambda: rules_of("nat") + rules_of("filter"))
    ours = [line for line in whole if "HOSTPORTS" in line or "HP-MASQ" in line or "LOCALNET" in line]
    assert len(ours) > 5
    assert [line for line in ours if line not in mended] == []


def rules_of(table: str) -> list[str]:
    """The lines of a table that are rules."""
    text = processes.run(["iptables-save", "-t", table]).stdout.decode()
    return [line for line in text.splitlines() if line.startswith("-A")]


def test_host_port_of_sctp(new_netns: Make, tmp_path: Path) -> None:
    lan = Lan(new_netns, tmp_path)
    node, outside = lan.add_node(), lan.add_node()
    mapping = {"hostPort": 9000, "containerPort": 90, "protocol": "SCTP"}
    pod, ip = node.add_pod("p1", runtimeConfig={"portMappings": [mapping]})
    rules = node.run(lambda: processes.run(["iptables-save", "-t", "nat"]).stdout.decode())
    assert "-p sctp -m sctp --dport 9000" in rules and f"--to-destination {ip}:90" in rules
    try:
        listener = netns.open_socket(pod, socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    except OSError:
        pytest.skip("this kernel has no SCTP (CONFIG_IP_SCTP)")
    with (
        listener,
        netns.open_socket(outside.netns, socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as caller,
    ):
        listener.bind(("0.0.0.0", 90))
        listener.listen(1)
        caller.settimeout(60)
        caller.connect((node.ip, 9000))


def test_devices_have_names_that_follow_from_the_pod(node: Machine) -> None:
    node.add_pod("p1")
    assert ports(node) == {host_name(Attachment("p1", "eth0"))}
