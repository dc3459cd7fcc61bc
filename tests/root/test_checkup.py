"""`nodelet preflight` against rules of a real kernel: a firewall's, and then ours beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent import checkup
from host import netns, processes

FIREWALLD = """
table inet firewalld {
  chain filter_IN_public {
    tcp dport 22 ct state { new, untracked } accept
    tcp dport 30000-32767 accept
  }
  chain filter_INPUT_ZONES {
    iifname "eth0" goto filter_IN_public
    goto filter_IN_public
  }
  chain filter_INPUT {
    type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    iifname "lo" accept
    jump filter_INPUT_ZONES
    reject with icmpx admin-prohibited
  }
}
"""


def closed(where: Path) -> dict[str, str]:
    """The fix of each port that is closed, by port."""
    found = netns.run_in(where, lambda: list(checkup.firewall("eth0")))
    return {check.what: check.fix for check in found if check.state == "missing"}


def test_a_firewall_that_keeps_other_nodes_out(new_netns: Callable[[str], Path]) -> None:
    where = new_netns("node")

    def run(*argv: str, input: str = "") -> None:
        netns.run_in(where, lambda: processes.run(list(argv), input=input.encode()))

    assert closed(where) == {}
    run("nft", "-f", "-", input=FIREWALLD)
    assert set(closed(where)) == {"10250/tcp", "8472/udp"}
    assert "firewall-cmd --permanent --add-port=10250/tcp" in closed(where)["10250/tcp"]
    run("nft", "add", "rule", "inet", "firewalld", "filter_IN_public", "udp", "dport", "8472", "accept")
    assert set(closed(where)) == {"10250/tcp"}
    run("nft", "flush", "ruleset")
    run("iptables", "-P", "INPUT", "DROP")
    run("iptables", "-A", "INPUT", "-p", "tcp", "-m", "multiport", "--dports", "22,10250", "-j", "ACCEPT")
    assert set(closed(where)) == {"8472/udp", "30000/tcp"}
