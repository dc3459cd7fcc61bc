"""`nodelet preflight` on machines made by hand: what is missing is named, with the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import checkup
from agent.checkup import Check, Roots
from host.rules import firewalls
from host.rules.firewalls import Packet

KUBELET = Packet("tcp", 10250, "eth0")
UFW = """\
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:ufw-before-input - [0:0]
:ufw-not-local - [0:0]
:ufw-user-input - [0:0]
-A INPUT -j ufw-before-input
-A INPUT -j ufw-user-input
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -j ufw-not-local
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -j DROP
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
{}COMMIT
"""


def ufw(*rules: str) -> str:
    return UFW.format("".join(f"-A ufw-user-input {rule}\n" for rule in rules))


@pytest.mark.parametrize(
    ("rules", "refused"),
    [
        ((), "iptables INPUT drops what no rule accepts"),
        (("-p tcp -m tcp --dport 10250 -j ACCEPT",), ""),
        (("-p tcp -m multiport --dports 80,10000:11000 -j ACCEPT",), ""),
        (("-p udp -m udp --dport 10250 -j ACCEPT",), "iptables INPUT drops what no rule accepts"),
        (("-s 10.0.0.0/8 -j ACCEPT",), "iptables INPUT drops what no rule accepts"),  # not everybody
        (("-i eth0 -j ACCEPT",), ""),
        (("-i wg0 -j ACCEPT",), "iptables INPUT drops what no rule accepts"),
        (("-p tcp -m tcp --dport 10250 -j REJECT", "-j ACCEPT"), "iptables ufw-user-input: -p tcp"),
        (('-p tcp -m comment --comment "-x -j" -j ACCEPT',), ""),
        (("-p tcp -g elsewhere",), "iptables INPUT drops what no rule accepts"),
    ],
)
def test_iptables_rules_are_walked(rules: tuple[str, ...], refused: str) -> None:
    found = firewalls.refused_by_iptables(ufw(*rules), KUBELET)
    assert found.startswith(refused) and bool(found) is bool(refused)


def test_without_rules_nothing_is_refused() -> None:
    assert firewalls.refused_by_iptables("", KUBELET) == ""
    assert firewalls.refused_by_nftables({}, KUBELET) == ""
    loop = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j a\n-A a -j INPUT\n"
    assert firewalls.refused_by_iptables(loop, KUBELET) == ""


def match(left: dict, right: object, op: str = "==") -> dict:
    return {"match": {"op": op, "left": left, "right": right}}


def firewalld(*allowed: object, policy: str = "accept") -> dict:
    """As firewalld 1.x lays it out, with these destination ports of TCP in the zone."""
    table = {"family": "inet", "table": "firewalld"}
    state, device = {"ct": {"key": "state"}}, {"meta": {"key": "iifname"}}
    rules = [
        ("filter_INPUT", [match(state, {"set": ["established", "related"]}), {"accept": None}]),
        ("filter_INPUT", [match(device, "lo"), {"accept": None}]),
        ("filter_INPUT", [{"jump": {"target": "zones"}}]),
        ("filter_INPUT", [{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}]),
        ("zones", [match(device, "eth1"), {"goto": {"target": "trusted"}}]),
        ("zones", [{"goto": {"target": "public"}}]),
        ("trusted", [{"accept": None}]),
    ]
    dport = {"payload": {"protocol": "tcp", "field": "dport"}}
    rules += [
        ("public", [match(dport, port), match(state, ["new"], "in"), {"accept": None}]) for port in allowed
    ]
    base = {"name": "filter_INPUT", "hook": "input", "type": "filter", "policy": policy, **table}
    return {
        "nftables": [
            {"metainfo": {"json_schema_version": 1}},
            {"chain": base},
            *({"rule": {"chain": chain, "expr": expr, **table}} for chain, expr in rules),
        ]
    }


def test_nftables_rules_are_walked() -> None:
    assert firewalls.refused_by_nftables(firewalld(), KUBELET) == "nftables inet firewalld filter_INPUT"
    for port in (10250, {"range": [10000, 11000]}, {"set": [22, 10250]}):
        assert firewalls.refused_by_nftables(firewalld(port), KUBELET) == ""
    assert firewalls.refused_by_nftables(firewalld(22), KUBELET) != ""
    assert firewalls.refused_by_nftables(firewalld(), Packet("tcp", 10250, "eth1")) == ""
    strict = firewalld(policy="drop")
    strict["nftables"] = [one for one in strict["nftables"] if "reject" not in str(one)]
    assert "drops what no rule accepts" in firewalls.refused_by_nftables(strict, KUBELET)
    ours = firewalld()
    ours["nftables"].append(
        {"rule": {"family": "inet", "table": "firewalld", "chain": "public", "expr": [{"xt": None}]}}
    )
    assert firewalls.refused_by_nftables(ours, KUBELET) == ""  # iptables-save tells of those


def states(checks: list[Check]) -> dict[str, str]:
    return {check.what: check.state for check in checks}


def test_closed_ports_are_named_with_the_firewalls_own_command() -> None:
    closed = list(checkup.judge(ufw(), {}, "eth0"))
    assert [check.fix for check in closed] == [
        "ufw allow 10250/tcp",
        "ufw allow 8472/udp",
        "ufw allow 30000:32767/tcp",
    ]
    by_firewalld = list(checkup.judge("", firewalld(10250), "eth0"))
    assert states(by_firewalld) == {"10250/tcp": "ok", "8472/udp": "missing", "30000/tcp": "missing"}
    assert by_firewalld[1].fix.startswith("firewall-cmd --permanent --add-port=8472/udp && ")


def machine(folder: Path, **files: str) -> Roots:
    content = {
        "proc/swaps": "Filename Type\n",
        "proc/filesystems": "nodev overlay\n",
        "proc/sys/net/bridge/bridge-nf-call-iptables": "1\n",
        "proc/sys/net/netfilter/nf_conntrack_max": "1000\n",
        "proc/sys/net/ipv4/ip_forward": "1\n",
        "cgroup/cgroup.controllers": "cpu memory pids io\n",
        "sys/module/vxlan/refcnt": "0\n",
        **files,
    }
    for name, text in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Roots(folder / "proc", folder / "cgroup", folder / "sys")


def test_a_fit_machine(tmp_path: Path) -> None:
    found = list(checkup.kernel(machine(tmp_path), release="6.1.0-9-amd64", uid=0))
    assert set(states(found).values()) == {"ok"}
    assert all(not check.fix for check in found)


def test_what_is_missing_of_a_machine(tmp_path: Path) -> None:
    roots = machine(
        tmp_path,
        **{
            "proc/swaps": "Filename Type\n/dev/sda2 partition\n",
            "proc/filesystems": "ext4\n",
            "cgroup/cgroup.controllers": "cpu io pids\n",
            "proc/sys/net/ipv4/ip_forward": "0\n",
        },
    )
    (roots.proc / "sys/net/bridge/bridge-nf-call-iptables").unlink()
    found = {c.what: c for c in checkup.kernel(roots, release="4.19.0", uid=1000)}
    for what in ("root", "kernel", "cgroups", "overlay", "br_netfilter"):
        assert found[what].state == "missing" and found[what].fix, what
    assert found["cgroups"].text == "v2 without memory"
    assert found["br_netfilter"].fix.startswith("modprobe br_netfilter")
    assert found["swap"].fix.startswith("swapoff -a")
    assert found["net.ipv4.ip_forward"].state == "note"
    lacking = {c.what: c for c in checkup.programs(lambda name: None)}
    assert lacking["iptables"].fix == "apt-get install iptables"
    shown = checkup.report(list(found.values()))
    assert "→ modprobe overlay" in shown
