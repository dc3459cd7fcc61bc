"""`nodelet net` on tables made by hand: every hop named, and the one that fails is the last.

This node has pods web 10.1.0.5 and db 10.1.0.6 on cbr0; 10.2.0.0/24 is behind node 192.0.2.12.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from test_policy_rules import picture_of, policy
from test_policy_rules import pod as described

from agent.api.structs import (
    Endpoint,
    EndpointSlice,
    Node,
    NodeSpec,
    ObjectMeta,
    ObjectReference,
    Service,
    ServicePort,
    ServiceSpec,
)
from agent.explain import names, netcommand, nettargets
from agent.explain.documents import Known
from agent.explain.nettables import Tables
from agent.explain.nettargets import Target
from agent.explain.nettrace import Question, trace
from agent.policy.objects import PodFact
from agent.policy.verdict import Rules
from cni.vxlan import ROUTE_PROTOCOL
from host.errors import InputError
from host.rtnl import NUD_PERMANENT, Link, Neighbour, Route
from host.wireguard import Tunnel

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
    "PREROUTING": ['-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'],
    "KUBE-SERVICES": [
        '-d 10.96.0.1/32 -p tcp -m comment --comment "shop/front:http cluster IP" -m tcp --dport 80'
        " -j KUBE-SVC-A",
        "! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
    ],
    "KUBE-NODEPORTS": ['-p tcp -m comment --comment "shop/front:http" -m tcp --dport 30080 -j KUBE-EXT-A'],
    "KUBE-EXT-A": ["-j KUBE-SVC-A"],
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
    filter={
        "KUBE-SERVICES": [
            '-d 10.96.0.2/32 -p tcp -m comment --comment "shop/idle has no endpoints" -m tcp --dport 80'
            " -j REJECT --reject-with icmp-port-unreachable"
        ]
    },
)


def ask(tables: Tables, source, target, port: int = 80, **known):
    return trace(tables, Question(source, target, "tcp", port, **known))


def hops(tables: Tables, source, target, port: int = 80) -> list[tuple[str, bool]]:
    return [(hop.table, hop.ok) for hop in ask(tables, source, target, port)]


def lost(tables: Tables, source, target, port: int = 80, **known) -> str:
    """The first table where the packet is lost, and why."""
    found = [hop for hop in ask(tables, source, target, port, **known) if not hop.ok]
    assert found
    return f"{found[0].table}: {found[0].text}"


def without(tables: Tables, name: str, **changed) -> Tables:
    """With some of the nat or filter chains changed; None removes one."""
    chains = {**getattr(tables, name), **changed}
    return replace(tables, **{name: {key: rules for key, rules in chains.items() if rules is not None}})


def test_the_way_to_a_neighbour_another_node_a_service_and_outside() -> None:
    there = ["policy", "route", "neighbour"]
    assert hops(WHOLE, WEB, DB) == [(name, True) for name in ("source", *there, "pod", "reply")]
    far = [*there, "fdb", "underlay", "reply"]
    assert hops(WHOLE, WEB, FAR) == [(name, True) for name in ("source", *far)]
    through = ["source", "service", "endpoint", *there, "pod", "reply", "endpoint", *far]
    assert hops(WHOLE, WEB, VIP) == [(name, True) for name in through]
    assert hops(WHOLE, WEB, ip("203.0.113.1"))[-2:] == [("device", True), ("reply", True)]
    assert hops(WHOLE, ip("192.0.2.11"), DB)[1] == ("policy", True)


def test_the_way_through_wireguard() -> None:
    device = Link(3, "flannel-wg", "wireguard", "", 1420, True, 0)
    behind = Tunnel("key", ip("192.0.2.12"), 51820, (net("10.2.0.0/24"),))
    routes = (*WHOLE.routes[:2], Route(net("10.2.0.0/24"), 3, protocol=ROUTE_PROTOCOL), WHOLE.routes[3])
    links = tuple(device if link.index == 3 else link for link in LINKS)
    whole = replace(WHOLE, links=links, routes=routes, tunnels={3: frozenset({behind})})
    assert hops(whole, WEB, FAR)[-4:] == [(n, True) for n in ("route", "peer", "underlay", "reply")]
    assert lost(replace(whole, tunnels={}), WEB, FAR) == "peer: flannel-wg has no peer with 10.2.0.0/24"
    elsewhere = lost(whole, WEB, FAR, nodes={FAR: ip("192.0.2.99")})
    assert elsewhere == "peer: 10.2.0.0/24 is behind 192.0.2.12, but the pod's node is 192.0.2.99"
    assert netcommand.peers(whole).splitlines()[1].split() == ["10.2.0.0/24", "flannel-wg", "-", "192.0.2.12"]
    assert "missing" in netcommand.peers(replace(whole, tunnels={}))


def test_a_node_port_is_a_service_of_this_node() -> None:
    found = ask(WHOLE, ip("203.0.113.1"), ip("192.0.2.11"), 30080)
    assert found[1].text == "192.0.2.11 port 30080 is shop/front:http: 2 endpoints"
    assert ask(WHOLE, ip("203.0.113.1"), ip("192.0.2.11"), 30081)[-2].table == "address"


def test_the_hop_that_fails_is_named() -> None:
    down = replace(LINKS[4], up=False)
    assert "db is down" in lost(replace(WHOLE, links=(*LINKS[:4], down)), WEB, DB)
    assert lost(replace(WHOLE, links=LINKS[:4]), WEB, DB) == "pod: no pod of this node has 10.1.0.6"
    assert "no route to" in lost(replace(WHOLE, routes=()), WEB, FAR)
    assert "no entry for 10.2.0.0" in lost(replace(WHOLE, neighbours={}), WEB, FAR)
    assert "no node for 02:00:00:00:00:22" in lost(replace(WHOLE, fdb={}), WEB, FAR)
    no_underlay = replace(WHOLE, routes=(WHOLE.routes[1], WHOLE.routes[2]))
    assert "no way to 192.0.2.12" in lost(no_underlay, WEB, FAR)
    elsewhere = {4: (Neighbour(4, "0a:58:0a:01:00:06", 2),)}
    assert "behind vethweb, not vethdb" in lost(replace(WHOLE, fdb=elsewhere), WEB, DB)
    wrong = {2: (entry(2, "02:00:00:00:00:99", "10.1.0.6"),)}
    assert "but vethdb has 0a:58:0a:01:00:06" in lost(replace(WHOLE, neighbours=wrong), WEB, DB)
    assert "ip_forward is 0" in lost(replace(WHOLE, forwards=frozenset({6})), WEB, FAR)
    closed = replace(WHOLE, closed=frozenset({4}))
    assert "does not lead to NODELET-FORWARD" in lost(closed, WEB, DB)
    assert ask(without(closed, "filter", FORWARD=["-j NODELET-FORWARD"]), WEB, DB)[-1].ok


def test_what_fails_of_a_service_is_named() -> None:
    assert "KUBE-SVC-A leads to no endpoint" in lost(without(WHOLE, "nat", **{"KUBE-SVC-A": []}), WEB, VIP)
    assert "shop/idle, which has no endpoints" in lost(WHOLE, WEB, ip("10.96.0.2"))
    unreached = without(WHOLE, "nat", PREROUTING=[])
    assert "PREROUTING does not lead to KUBE-SERVICES" in lost(unreached, WEB, VIP)
    assert "OUTPUT does not lead to" in lost(WHOLE, ip("192.0.2.11"), VIP)
    unwritten = without(WHOLE, "nat", **{"KUBE-SERVICES": []})
    assert "no rule for shop/front" in lost(unwritten, WEB, VIP, service="shop/front:http")


def test_one_endpoint_of_many_that_cannot_be_reached_is_found() -> None:
    many = [f"-j KUBE-SEP-{n}" for n in range(9)]
    chains = {f"KUBE-SEP-{n}": [f"-p tcp -j DNAT --to-destination 10.1.0.{n + 1}:80"] for n in range(9)}
    found = ask(without(WHOLE, "nat", **{"KUBE-SVC-A": many}, **chains), WEB, VIP)
    assert sum(not hop.ok for hop in found) == 6  # this node has three of them: itself, web, and db
    near = {f"KUBE-SEP-{n}": [f"-p tcp -j DNAT --to-destination 10.1.0.6:{n + 1}"] for n in range(9)}
    found = ask(without(WHOLE, "nat", **{"KUBE-SVC-A": many}, **near), WEB, VIP)
    assert found[-1].text == "6 more, nothing in the way"


def test_the_way_back_is_looked_at_too() -> None:
    away = replace(WHOLE, routes=(*WHOLE.routes[:1], *WHOLE.routes[2:]))
    assert "reply: to 10.1.0.5: route: " in lost(away, WEB, FAR)
    assert "is on cbr0" in lost(away, WEB, FAR)
    one_way = replace(WHOLE, fdb={5: WHOLE.fdb[5]})
    assert "reply: to 10.2.0.9: fdb: no node" in lost(one_way, FAR, DB)


def test_the_agent_knows_better_where_an_address_is() -> None:
    nodes = {FAR: ip("192.0.2.13")}
    assert "is at 192.0.2.12, but the pod's node is 192.0.2.13" in lost(WHOLE, WEB, FAR, nodes=nodes)
    direct = replace(
        WHOLE, routes=(WHOLE.routes[1], Route(net("10.2.0.0/24"), 1, ip("192.0.2.12")), WHOLE.routes[3])
    )
    assert "not to node 192.0.2.13" in lost(direct, WEB, FAR, nodes=nodes)
    assert ask(direct, WEB, FAR, nodes={FAR: ip("192.0.2.12")})[-1].ok


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
    assert hops(guarded, DB, WEB)[-1] == ("reply", True)


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


def test_words_that_name_pods_and_services() -> None:
    def find(word: str, ask=lambda word: ()) -> Target:
        return nettargets.find(WHOLE, word, ask)

    assert find("web") == find("default/web") == find("pod/web") == find("pod/default/web") == Target(WEB)
    assert find("web:8080").port == 8080
    assert find("10.9.9.9") == Target(ip("10.9.9.9"))
    assert find("[fd00::5]:80") == Target(ip("fd00::5"), 80)
    assert find("fd00::5") == Target(ip("fd00::5"))
    front = Target(VIP, 80, "tcp", "shop/front:http")
    for word in ("front", "shop/front", "front:80", "shop/front:http", "svc/front", "svc/shop/front:80"):
        assert find(word) == front
    assert find("idle") == Target(ip("10.96.0.2"), 80, "tcp", "shop/idle")
    for word, problem in (
        ("nobody", "no pod of this node, and no Service, is called nobody"),
        ("pod/front", "no pod"),
        ("front:90", r"Service front has no port 90: say front:PORT, with one of http \(80/tcp\)"),
        ("10.1.0.5:http", "http is no port number"),
    ):
        with pytest.raises(InputError, match=problem):
            find(word)
    with pytest.raises(InputError, match=r"a pod and a Service are called web: say pod/web or svc/web"):
        find("web", lambda word: [Known(kind="service", namespace="a", name="web", ip="10.96.0.9", port=1)])
    both = [Known(kind="service", namespace=ns, name="x", ip="10.96.0.9", port=1) for ns in "ab"]
    with pytest.raises(InputError, match="several Services are called x: say one of a/x, b/x"):
        find("x", lambda word: both)


def test_a_node_is_where_it_is_in_the_ip_version_that_is_asked_for() -> None:
    public = {
        "flannel.alpha.coreos.com/public-ip": "192.0.2.12",
        "flannel.alpha.coreos.com/public-ipv6": "2001:db8::12",
    }
    ranges = NodeSpec(pod_cidrs=("10.2.0.0/24", "fd00:2::/64"))
    nodes = {"n2": Node(metadata=ObjectMeta(name="n2", annotations=public), spec=ranges)}
    for address, host in (("10.2.0.9", "192.0.2.12"), ("fd00:2::9", "2001:db8::12")):
        (found,) = names.lookup(address, services=(), slices=(), pods=(), nodes=nodes)
        assert (found.node, found.host) == ("n2", host)


def test_the_agent_is_asked_for_what_the_kernel_does_not_know() -> None:
    service = Service(
        metadata=ObjectMeta(name="front", namespace="shop"),
        spec=ServiceSpec(
            cluster_ip="10.96.0.7",
            cluster_ips=("10.96.0.7",),
            ports=(ServicePort(name="http", port=80), ServicePort(name="dns", port=53, protocol="UDP")),
        ),
    )
    cart = ObjectReference(kind="Pod", namespace="shop", name="cart")
    behind = EndpointSlice(endpoints=(Endpoint(addresses=("10.2.0.9",), target_ref=cart),))
    public = {"flannel.alpha.coreos.com/public-ip": "192.0.2.12"}
    other = Node(
        metadata=ObjectMeta(name="n2", annotations=public), spec=NodeSpec(pod_cidrs=("10.2.0.0/24",))
    )

    def ask(word: str) -> list[Known]:
        pods = [
            PodFact("u", "shop", "cart", {}, ("10.2.0.9",)),
            PodFact("v", "shop", "lone", {}, ("10.2.0.8",)),
        ]
        nodes = {"n2": other}
        return names.lookup(word, services=[service], slices=[behind], pods=pods, nodes=nodes)

    host = ip("192.0.2.12")
    assert nettargets.find(WHOLE, "cart", ask) == Target(FAR, node=host)
    assert nettargets.find(WHOLE, "shop/lone:90", ask) == Target(ip("10.2.0.8"), 90, node=host)
    assert nettargets.find(WHOLE, "10.2.0.77", ask) == Target(ip("10.2.0.77"), node=host)
    assert nettargets.find(WHOLE, "10.96.0.7:80", ask) == Target(ip("10.96.0.7"), 80, service="shop/front")
    dns = Target(ip("10.96.0.7"), 53, "udp", "shop/front:dns")
    bare = without(WHOLE, "nat", **{"KUBE-SERVICES": []})
    assert nettargets.find(bare, "shop/front:dns", ask) == dns
    with pytest.raises(InputError, match=r"several ports: say front:PORT, with one of dns .*, http"):
        nettargets.find(bare, "front", ask)
    assert ask("10.3.0.1") == []
