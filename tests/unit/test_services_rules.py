"""Planned rules, judged by packets: who reaches what, with which source address.

Addresses: node 192.168.0.1, pods of this node 10.1.0.0/24 on cbr0, pods elsewhere 10.2.0.0/24, outside
203.0.113.1, service 10.96.0.10:80, endpoints on port 8080.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from service_oracle import FakeIptables, Packet, Verdict, trace

from agent.services import rules
from agent.services.iptables import IptablesBackEnd
from agent.services.picture import Endpoint, NodeFacts, VirtualPort, VirtualService, choose
from agent.services.rules import Settings

VIP = "10.96.0.10"
NODE = NodeFacts(name="n1", zone="a")
LOCAL = Endpoint("10.1.0.5", 8080, local=True)
REMOTE = Endpoint("10.2.0.5", 8080)
POD = Packet("10.1.0.9", VIP, 80, interface="cbr0")
OUTSIDE = Packet("203.0.113.1", VIP, 80)
HOST = Packet("192.168.0.1", VIP, 80, interface="")


def port(*endpoints: Endpoint, **facts: object) -> VirtualPort:
    base = VirtualPort(name="ns/web:http", protocol="tcp", cluster_ip=VIP, port=80)
    return choose(replace(base, **facts), endpoints, NODE)


async def tables_of(*ports: VirtualPort, settings: Settings | None = None) -> dict[str, dict[str, list[str]]]:
    fake = FakeIptables()
    back_end = IptablesBackEnd(settings or Settings(), port=fake)
    await back_end.sync({"ns/web": VirtualService("ns/web", ports)}, [])
    return fake.tables


def accepted(to: Endpoint, *, masqueraded: bool = False) -> Verdict:
    return Verdict("ACCEPT", to.address, masqueraded)


def test_names_are_kube_proxys() -> None:
    """Values from a kube-proxy cluster: default/kubernetes:https."""
    api = VirtualPort(name="default/kubernetes:https", protocol="tcp", cluster_ip="10.96.0.1", port=443)
    assert rules.names_of(api).cluster == "KUBE-SVC-NPX46M4PTMTKRN6Y"


def test_probabilities_are_what_the_kernel_keeps() -> None:
    assert [rules.probability(count) for count in (2, 3)] == ["0.50000000000", "0.33333333349"]


@pytest.mark.parametrize(
    ("packet", "masqueraded"),
    [(POD, False), (OUTSIDE, True), (HOST, True), (replace(POD, source=LOCAL.ip), True)],
    ids=["pod", "outside", "node", "hairpin"],
)
async def test_cluster_ip(packet: Packet, masqueraded: bool) -> None:
    tables = await tables_of(port(LOCAL))
    assert trace(tables, packet) == accepted(LOCAL, masqueraded=masqueraded)


async def test_other_ports_and_protocols_pass_untouched() -> None:
    tables = await tables_of(port(LOCAL))
    assert trace(tables, replace(POD, port=81)) == Verdict("ACCEPT", f"{VIP}:81")
    assert trace(tables, replace(POD, protocol="udp")) == Verdict("ACCEPT", f"{VIP}:80")


@pytest.mark.parametrize("protocol", ["udp", "sctp"])
async def test_other_protocols_are_served(protocol: str) -> None:
    tables = await tables_of(port(LOCAL, protocol=protocol))
    assert trace(tables, replace(POD, protocol=protocol)) == accepted(LOCAL)


async def test_the_spread_is_even() -> None:
    endpoints = [Endpoint(f"10.2.0.{last}", 8080) for last in range(1, 6)]
    tables = await tables_of(port(*endpoints))
    dice = random.Random(1)
    hits = Counter(trace(tables, POD, chance=lambda probability: dice.random()).to for _ in range(1000))
    assert set(hits) == {endpoint.address for endpoint in endpoints}
    assert all(150 < count < 250 for count in hits.values())


async def test_no_endpoints_are_rejected_everywhere() -> None:
    tables = await tables_of(port(node_port=30080, load_balancer_ips=("198.51.100.1",)))
    for packet in (POD, OUTSIDE, HOST):
        assert trace(tables, packet).what == "REJECT"
        assert trace(tables, replace(packet, destination="198.51.100.1")).what == "REJECT" or packet is HOST
    assert trace(tables, replace(OUTSIDE, destination="192.168.0.1", port=30080)).what == "REJECT"
    assert trace(tables, replace(POD, destination="10.2.0.7", port=30080)).what == "ACCEPT"


@pytest.mark.parametrize("endpoint", [LOCAL, REMOTE], ids=["local", "remote"])
async def test_node_port_answers_on_every_node(endpoint: Endpoint) -> None:
    tables = await tables_of(port(endpoint, node_port=30080))
    for packet in (OUTSIDE, POD, HOST):
        to_node = replace(packet, destination="192.168.0.1", port=30080)
        assert trace(tables, to_node) == accepted(endpoint, masqueraded=True)
    loopback = Packet("127.0.0.1", "127.0.0.1", 30080, interface="")
    assert trace(tables, loopback).to == "127.0.0.1:30080"
    elsewhere = replace(OUTSIDE, destination="192.168.0.2", port=30080)
    assert trace(tables, elsewhere).to == "192.168.0.2:30080"


async def test_node_port_on_chosen_addresses_only() -> None:
    tables = await tables_of(
        port(LOCAL, node_port=30080), settings=Settings(node_port_addresses=("192.168.0.1",))
    )
    local = frozenset({"192.168.0.1", "172.16.0.1"})
    chosen = replace(OUTSIDE, destination="192.168.0.1", port=30080)
    assert trace(tables, chosen, local=local) == accepted(LOCAL, masqueraded=True)
    other = replace(OUTSIDE, destination="172.16.0.1", port=30080)
    assert trace(tables, other, local=local).to == "172.16.0.1:30080"


async def test_external_traffic_policy_local() -> None:
    facts = {"node_port": 30080, "external_local": True}
    tables = await tables_of(port(LOCAL, REMOTE, **facts))
    outside = replace(OUTSIDE, destination="192.168.0.1", port=30080)
    for chance in (0.0, 1.0):
        seen = trace(tables, outside, chance=lambda probability, chance=chance: chance)
        assert seen == accepted(LOCAL), "the client's own address must arrive"
    pod = replace(POD, destination="192.168.0.1", port=30080)
    either = {trace(tables, pod, chance=lambda probability, c=c: c).to for c in (0.0, 1.0)}
    assert either == {LOCAL.address, REMOTE.address}

    nothing_here = await tables_of(port(REMOTE, **facts))
    assert trace(nothing_here, outside).what == "DROP"
    assert trace(nothing_here, pod) == accepted(REMOTE)
    host = Packet("192.168.0.1", "192.168.0.1", 30080, interface="")
    assert trace(nothing_here, host) == accepted(REMOTE, masqueraded=True)


async def test_internal_traffic_policy_local() -> None:
    tables = await tables_of(port(LOCAL, REMOTE, internal_local=True))
    for chance in (0.0, 1.0):
        seen = trace(tables, POD, chance=lambda probability, chance=chance: chance)
        assert seen == accepted(LOCAL)
    nothing_here = await tables_of(port(REMOTE, internal_local=True))
    assert trace(nothing_here, POD).what == "DROP"


async def test_load_balancer_addresses_and_source_ranges() -> None:
    facts = {"load_balancer_ips": ("198.51.100.1",), "source_ranges": ("203.0.113.0/28",)}
    tables = await tables_of(port(LOCAL, **facts))
    inside = replace(OUTSIDE, destination="198.51.100.1")
    assert trace(tables, inside) == accepted(LOCAL, masqueraded=True)
    assert trace(tables, replace(inside, source="203.0.113.99")).what == "DROP"
    assert trace(tables, OUTSIDE).what == "ACCEPT"


async def test_external_ips() -> None:
    tables = await tables_of(port(REMOTE, external_ips=("80.11.12.10",)))
    assert trace(tables, replace(OUTSIDE, destination="80.11.12.10")) == accepted(REMOTE, masqueraded=True)


async def test_session_affinity() -> None:
    endpoints = (LOCAL, REMOTE)
    tables = await tables_of(port(*endpoints, affinity_seconds=600))
    recent: dict[str, set[str]] = {}
    first = trace(tables, POD, chance=lambda probability: 1.0, recent=recent)
    assert first.to == REMOTE.address
    assert trace(tables, POD, recent=recent) == first
    assert trace(tables, replace(POD, source="10.1.0.10"), recent=recent).to == LOCAL.address


async def test_masquerade_all_and_cidr_detection() -> None:
    everything = await tables_of(port(LOCAL), settings=Settings(masquerade_all=True))
    assert trace(everything, POD).masqueraded
    by_cidr = await tables_of(port(LOCAL), settings=Settings(local_interface="", local_cidr="10.1.0.0/24"))
    assert not trace(by_cidr, POD).masqueraded
    assert trace(by_cidr, OUTSIDE).masqueraded


async def test_ipv6() -> None:
    settings = Settings(family=6)
    endpoint = Endpoint("fd00:1::5", 8080)
    tables = await tables_of(port(endpoint, cluster_ip="fd00:96::a"), settings=settings)
    packet = Packet("fd00:1::9", "fd00:96::a", 80, interface="cbr0")
    assert trace(tables, packet).to == "fd00:1::5:8080"
    assert "icmp6-port-unreachable" in str(await tables_of(port(cluster_ip="fd00:96::a"), settings=settings))


async def test_the_health_check_port_is_let_in() -> None:
    fake = FakeIptables()
    service = VirtualService("ns/web", (port(LOCAL),), health_check_port=32000)
    await IptablesBackEnd(Settings(), port=fake).sync({"ns/web": service}, [])
    assert any("--dport 32000 -j ACCEPT" in rule for rule in fake.tables["filter"][rules.NODE_PORTS])


def test_two_topologies() -> None:
    zoned = (Endpoint("10.1.0.1", 1, zones=frozenset("a")), Endpoint("10.2.0.1", 1, zones=frozenset("b")))
    assert port(*zoned).cluster == zoned[:1]
    half = (zoned[0], Endpoint("10.2.0.1", 1))
    assert port(*half).cluster == half
    hinted = tuple(
        replace(one, nodes=frozenset({name})) for one, name in zip(zoned, ("n2", "n1"), strict=True)
    )
    assert port(*hinted).cluster == hinted[1:]


def test_terminating_endpoints_serve_only_when_nobody_else_does() -> None:
    leaving = Endpoint("10.1.0.6", 8080, local=True, ready=False, terminating=True)
    dead = Endpoint("10.1.0.7", 8080, ready=False, serving=False, terminating=True)
    assert port(LOCAL, leaving, dead).cluster == (LOCAL,)
    assert port(leaving, dead).cluster == (leaving,)
    assert not port(dead).has_endpoints
    local = port(REMOTE, leaving, external_local=True, node_port=30080)
    assert (local.cluster, local.local) == ((REMOTE,), (leaving,))
