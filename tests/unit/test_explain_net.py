"""`nodelet net` on tables made by hand: every hop named, and the one that fails is the last.

This node has pods web 10.1.0.5 and db 10.1.0.6 on cbr0; 10.2.0.0/24 is behind node 192.0.2.12.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from test_policy_rules import picture_of, policy
from test_policy_rules import pod as described

from agent.explain import netcommand, nettables
from agent.explain.nettables import Tables
from agent.explain.nettrace import trace
from agent.policy.verdict import Rules
from host.errors import InputError
from host.rtnl import NUD_PERMANENT, Link, Neighbour, Route

ip, net = ipaddress.ip_address, ipaddress.ip_network
WEB, DB, FAR, VIP = ip("10.1.0.5"), ip("10.1.0.6"), ip("10.2.0.9"), ip("10.96.0.1")


def veth(index: int, name: str, address: str) -> Link:
    alias = f"nodelet {name}box/eth0 {address} default/{name}"
    return Link(index, f"veth{name}", "veth", "0a:00:00:00:00:01", 1450, True, 2, alias)


def entry(index: int, mac: str, address: str) -> Neighbour:
    return Neighbour(index, mac, NUD_PERMANENT, ip(address))


LINKS = (
    Link(1, "eth0", "", "02:00:00:00:00:01", 1500, True, 0),
    Link(2, "cbr0", "bridge", "02:00:00:00:00:02", 1450, True, 0),
    Link(3, "flannel.1", "vxlan", "02:00:00:00:00:03", 1450, True, 0),
    veth(4, "web", "10.1.0.5"),
    veth(5, "db", "10.1.0.6"),
)
NAT = {
    "KUBE-SERVICES": ["-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-A"],
    "KUBE-SVC-A": ["! -i cbr0 -j KUBE-MARK-MASQ", "-m statistic -j KUBE-SEP-A", "-j KUBE-SEP-B"],
    "KUBE-SEP-A": ["-p tcp -j DNAT --to-destination 10.1.0.6:8080"],
    "KUBE-SEP-B": ["-p tcp -j DNAT --to-destination 10.2.0.9:8080"],
}
WHOLE = Tables(
    links=LINKS,
    own=frozenset({ip("10.1.0.1"), ip("192.0.2.11")}),
    routes=(
        Route(net("0.0.0.0/0"), 1, ip("192.0.2.254")),
        Route(net("10.1.0.0/24"), 2),
        Route(net("10.2.0.0/24"), 3, ip("10.2.0.0")),
        Route(net("192.0.2.0/24"), 1),
    ),
    neighbours={
        2: (entry(2, "0a:58:0a:01:00:05", "10.1.0.5"), entry(2, "0a:58:0a:01:00:06", "10.1.0.6")),
        3: (entry(3, "02:00:00:00:00:22", "10.2.0.0"),),
    },
    fdb={3: (entry(3, "02:00:00:00:00:22", "192.0.2.12"),), 5: (Neighbour(5, "0a:58:0a:01:00:06", 2),)},
    nat=NAT,
)


def hops(tables: Tables, source, target, port: int = 80) -> list[tuple[str, bool]]:
    return [(hop.table, hop.ok) for hop in trace(tables, source, target, protocol="tcp", port=port)]


def lost(tables: Tables, source, target, port: int = 80) -> str:
    """The table where the packet is lost, and why."""
    last = trace(tables, source, target, protocol="tcp", port=port)[-1]
    assert not last.ok
    return f"{last.table}: {last.text}"


def test_the_way_to_a_neighbour_another_node_a_service_and_outside() -> None:
    ok = [("source", True), ("policy", True), ("route", True), ("neighbour", True)]
    assert hops(WHOLE, WEB, DB) == [*ok, ("pod", True)]
    assert hops(WHOLE, WEB, FAR) == [*ok, ("fdb", True), ("underlay", True)]
    assert hops(WHOLE, WEB, VIP)[1] == ("service", True)
    assert hops(WHOLE, WEB, ip("203.0.113.1"))[-1] == ("device", True)
    assert hops(WHOLE, ip("192.0.2.11"), DB)[1] == ("policy", True)


def test_the_hop_that_fails_is_named() -> None:
    down = replace(LINKS[4], up=False)
    assert "db is down" in lost(replace(WHOLE, links=(*LINKS[:4], down)), WEB, DB)
    assert lost(replace(WHOLE, links=LINKS[:4]), WEB, DB) == "pod: no pod of this node has 10.1.0.6"
    assert "no route to" in lost(replace(WHOLE, routes=()), WEB, FAR)
    assert "no entry for 10.2.0.0" in lost(replace(WHOLE, neighbours={}), WEB, FAR)
    assert "no node for 02:00:00:00:00:22" in lost(replace(WHOLE, fdb={}), WEB, FAR)
    no_underlay = replace(WHOLE, routes=(WHOLE.routes[2],))
    assert "no way to 192.0.2.12" in lost(no_underlay, WEB, FAR)
    elsewhere = {4: (Neighbour(4, "0a:58:0a:01:00:06", 2),)}
    assert "behind vethweb, not vethdb" in lost(replace(WHOLE, fdb=elsewhere), WEB, DB)
    empty = {**NAT, "KUBE-SVC-A": []}
    assert "no endpoint that serves" in lost(replace(WHOLE, nat=empty), WEB, VIP)


def test_the_policies_that_isolate_are_named() -> None:
    pods = [
        {**described("a0", labels={"app": "web"}), "ips": [str(WEB)]},
        {**described("a1", labels={"app": "db"}), "ips": [str(DB)]},
    ]
    table = picture_of([policy("closed", podSelector={"matchLabels": {"app": "db"}})], pods, {}).table
    maps = {
        n: dict(e.split(" : ") for e in table.elements(n))
        for n in ("ingress-4", "egress-4", "ingress-6", "egress-6")
    }
    sets = {n: set(table.elements(n)) for n in ("self-4", "self-6")}
    chains = {name: list(table.chain(name) or ()) for name in table.content.chains}
    guarded = replace(WHOLE, policies=Rules(sets, maps, chains))
    assert "the server is isolated, and none of ns1/closed allows it" in lost(guarded, WEB, DB)
    assert "isolated" in lost(guarded, WEB, VIP)  # its first endpoint is that pod
    assert hops(guarded, DB, WEB)[-1] == ("pod", True)


def test_tables_for_people() -> None:
    assert netcommand.listing(WHOLE).splitlines()[1].split() == [
        "default/db",
        "vethdb",
        "up",
        "0a:58:0a:01:00:06",
        "10.1.0.6",
        "dbbox",
    ]
    assert netcommand.peers(WHOLE).splitlines()[1:] == [
        "10.2.0.0/24  flannel.1  02:00:00:00:00:22  192.0.2.12"
    ]
    assert netcommand.peers(replace(WHOLE, fdb={})).splitlines()[1].endswith("missing")


def test_words_that_name_pods() -> None:
    assert nettables.find(WHOLE, "web")[0] == WEB
    assert nettables.find(WHOLE, "default/web")[0] == WEB
    assert nettables.find(WHOLE, "10.9.9.9") == (ip("10.9.9.9"), None)
    with pytest.raises(InputError, match="no pod of this node is called nobody"):
        nettables.find(WHOLE, "nobody")
