"""CHECK on real namespaces: one part of a pod's network is spoilt by somebody's tools, and CHECK names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cnikit import call
from lan import Lan, Machine

from cni import errors, firewall, hostports
from cni.bandwidth import shaper_name
from cni.config import Attachment, parse_config
from cni.errors import CniError
from cni.wiring import host_name
from host import netns, processes

Make = Callable[[str], Path]
POD = Attachment("p1", "eth0")
PORT, SHAPER = host_name(POD), shaper_name(POD)
WHOLE: dict[str, Any] = {
    "runtimeConfig": {
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.11"},
        ],
        "bandwidth": {
            "ingressRate": 8_000_000,
            "ingressBurst": 1_000_000,
            "egressRate": 40_000_000_000,
            "egressBurst": 1_000_000,
        },
        "mac": "0A:11:22:33:44:55",
    }
}
"""All that a pod can ask for; one rate is more than 32 bits hold in bytes."""
LET_ALL_PASS = "1,6_0_0_4294967295"
"""A program of one instruction, in tc's words; with spaces for the lines."""


@pytest.fixture
def node(new_netns: Make, tmp_path: Path) -> Machine:
    """One node on a LAN of its own."""
    return Lan(new_netns, tmp_path).add_node()


ON_THE_NODE = {
    f"ip link set {PORT} nomaster": f"{PORT} is not an active port of cbr0",
    f"ip link set {PORT} down": f"{PORT} is not an active port of cbr0",
    f"ip link delete {PORT}": f"{PORT} is missing",
    "ip link delete cbr0": "bridge cbr0 is missing",
    f"bridge link set dev {PORT} hairpin off": f"hairpin of {PORT} is off, not on",
    f"tc filter delete dev {PORT} ingress pref 1": f"{PORT} has lost its spoof guard",
    f"tc filter replace dev {PORT} ingress pref 1 handle 1 bpf da bytecode {LET_ALL_PASS}": "spoof guard",
    f"tc qdisc delete dev {PORT} root": "what it receives is not limited to 8000000 bits a second",
    f"tc qdisc replace dev {PORT} root tbf rate 9mbit burst 64kb latency 25ms": "what it receives is not",
    f"tc qdisc delete dev {SHAPER} root": "what it sends is not limited to 40000000000 bits a second",
    f"ip link delete {SHAPER}": "what it sends is not limited to 40000000000 bits a second",
    f"tc filter delete dev {PORT} ingress pref 2": f"what it sends does not pass {SHAPER}",
    "iptables -t nat -F NODELET-HOSTPORTS": "NODELET-HOSTPORTS has lost the rule -p tcp",
    "iptables -t nat -D NODELET-HOSTPORTS 2": "NODELET-HOSTPORTS has lost the rule -d 192.0.2.11/32 -p udp",
    "iptables -t nat -F NODELET-HP-MASQ": "NODELET-HP-MASQ has lost the rule",
    "iptables -t nat -F PREROUTING": "no rule of PREROUTING in table nat leads to NODELET-HOSTPORTS",
    "iptables -F INPUT": "no rule of INPUT in table filter leads to NODELET-LOCALNET",
}
IN_THE_POD = {
    "ip link set eth0 down": "eth0 is missing or down in the pod",
    "ip link set eth0 name eth1": "eth0 is missing or down in the pod",
    "ip address flush dev eth0": "eth0 has lost 10.244.1.2",
    "ip link set eth0 address 02:00:00:00:00:09": "eth0 has the MAC 02:00:00:00:00:09, not 0a:11:22:33:44:55",
    "ip link set eth0 mtu 1400": "eth0 has an MTU of 1400 bytes, not 1450",
    "ip route delete default": "the pod has lost its default route by 10.244.1.1",
    "ip route replace default via 10.244.1.9": "the pod has lost its default route by 10.244.1.1",
}


@pytest.mark.parametrize(
    ("command", "words"), [*ON_THE_NODE.items(), *IN_THE_POD.items()], ids=lambda value: value[:40]
)
def test_the_part_that_is_wrong_is_named(node: Machine, command: str, words: str) -> None:
    pod, ip = node.add_pod("p1", **WHOLE)
    assert ip == "10.244.1.2"
    assert call(node, "CHECK", "p1", pod, **WHOLE) == {}
    argv = [word.replace("_", " ") for word in command.split()]
    netns.run_in(pod if command in IN_THE_POD else node.netns, lambda: processes.run(argv))
    with pytest.raises(CniError, match=words) as caught:
        call(node, "CHECK", "p1", pod, **WHOLE)
    assert caught.value.code == errors.CHECK_FAILED
    call(node, "DEL", "p1", pod, **WHOLE)


def test_host_ports_are_on_record(node: Machine) -> None:
    pod, _ = node.add_pod("p1", **WHOLE)
    (record,) = (node.state / "nodelet" / "ports").glob("p1,*")
    whole = record.read_bytes()
    record.unlink()
    with pytest.raises(CniError, match="its host ports are not on record"):
        call(node, "CHECK", "p1", pod, **WHOLE)
    record.write_bytes(whole)
    asked = WHOLE["runtimeConfig"]
    less = {"runtimeConfig": asked | {"portMappings": asked["portMappings"][:1]}}
    with pytest.raises(CniError, match="other host ports are on record"):
        call(node, "CHECK", "p1", pod, **less)


def test_what_was_not_asked_for_is_not_missed(node: Machine) -> None:
    pod, _ = node.add_pod("p1", spoofProtection=False, hairpinMode=False)
    assert call(node, "CHECK", "p1", pod, spoofProtection=False, hairpinMode=False) == {}
    with pytest.raises(CniError, match="hairpin"):
        call(node, "CHECK", "p1", pod, spoofProtection=False)
    with pytest.raises(CniError, match="spoof guard"):
        call(node, "CHECK", "p1", pod, hairpinMode=False)


def test_a_del_that_dies_before_its_rules_are_gone_is_made_good_by_the_next(
    node: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod, _ = node.add_pod("p1", **WHOLE)

    def die(*_args: object, **_more: object) -> None:
        raise SystemExit

    with monkeypatch.context() as killed, pytest.raises(SystemExit):
        killed.setattr("host.rules.iptables.restore", die)
        call(node, "DEL", "p1", pod, **WHOLE)
    call(node, "DEL", "p1", pod, **WHOLE)
    assert "--dport" not in node.run(lambda: processes.run(["iptables-save"]).stdout.decode())
    assert list((node.state / "nodelet" / "ports").glob("*,*")) == []


def test_a_record_that_cannot_be_read_is_set_aside_once(node: Machine) -> None:
    folder = node.state / "nodelet" / "ports"
    node.add_pod("p1", **WHOLE)
    (folder / "lost,eth0").write_text("half a rec")
    for name in ("p2", "p3"):
        pod, _ = node.add_pod(name, runtimeConfig={"portMappings": [{"hostPort": 9000, "containerPort": 1}]})
        call(node, "DEL", name, pod)
    assert {path.name for path in folder.glob("*,*")} == {"p1,eth0", "lost,eth0.corrupt"}
    assert call(node, "GC", "", **{"cni.dev/valid-attachments": []}) == {}
    assert {path.name for path in folder.glob("*,*")} == {"lost,eth0.corrupt"}


def test_what_was_just_made_needs_no_repair(node: Machine) -> None:
    """Rules are written as iptables prints them; else every look at them would write them anew."""
    both = {"subnets": ["10.244.1.0/24", "fd00:1::/64"], "clusterCIDRs": ["10.244.0.0/16", "fd00::/16"]}
    node.add_pod("p1", **both, **WHOLE)
    network = parse_config(node.config(**both))
    assert node.run(lambda: hostports.assert_rules(node.state / "nodelet")) is False
    assert node.run(lambda: firewall.ensure_rules(network)) is False
    node.run(lambda: processes.run(["iptables", "-F", "NODELET-LOCALNET"]))
    assert node.run(lambda: hostports.assert_rules(node.state / "nodelet")) is True
    assert node.run(lambda: hostports.assert_rules(node.state / "nodelet")) is False
