"""Row G04: the scenarios of the upstream tests "Netpol" and "Netpol [LinuxOnly]", one test each, under their
names; and a few of what they leave out.

`expect(port, (clients, servers, reached) …)` says what differs from "everybody reaches everybody".
Not here: their tests of SCTP packets, for which this machine's kernel would need the sctp module.

Source: k8s.io/kubernetes/test/e2e/network/netpol/network_policy.go.
"""

from __future__ import annotations

import ipaddress
import json

import pytest
from netpol import among, labelled

A, B, C = (labelled(pod=name) for name in "abc")
ANY = {}


def tcp(*ports, **more):
    return [{"protocol": "TCP", "port": port, **more} for port in ports]


# --- who is isolated, and from whom ----------------------------------------------------------------------


def test_default_deny_ingress(net):
    net.enforce(net.policy("x", ingress=[]))
    net.expect(80, ("*", "x", False))


def test_default_deny_all(net):
    net.enforce(net.policy("x", ingress=[], egress=[]))
    net.expect(80, ("*", "x", False), ("x", "*", False))


def test_pods_within_the_server_namespace_by_pod_selector(net):
    net.enforce(net.policy("x", pods=A, ingress=[{"from": [{"podSelector": B}]}]))
    net.expect(80, ("*", "x/a", False), ("x/b", "x/a", True))


def test_ingress_traffic_for_a_target(net):
    everybody = {"podSelector": ANY, "namespaceSelector": ANY}
    net.enforce(net.policy("x", ingress=[]), net.policy("x", pods=A, ingress=[{"from": [everybody]}]))
    net.expect(80, ("*", "x", False), ("*", "x/a", True))


def test_ingress_from_pods_in_all_namespaces(net):
    net.enforce(net.policy("x", pods=A, ingress=[{"from": [{"namespaceSelector": ANY}]}]))
    net.expect(80)


def test_only_from_a_different_namespace(net):
    there = {"namespaceSelector": labelled(**{"kubernetes.io/metadata.name": net.spaces["y"].name})}
    net.enforce(net.policy("x", pods=A, ingress=[{"from": [there]}]))
    net.expect(80, ("x", "x/a", False), ("z", "x/a", False))


def test_pod_selector_with_match_expressions(net):
    net.enforce(net.policy("x", pods=A, ingress=[{"from": [{"podSelector": among("pod", "b")}]}]))
    net.expect(80, ("*", "x/a", False), ("x/b", "x/a", True))


def test_namespace_selector_with_match_expressions(net):
    there = {"namespaceSelector": net.in_namespace("y")}
    net.enforce(net.policy("x", pods=A, ingress=[{"from": [there]}]))
    net.expect(80, ("x", "x/a", False), ("z", "x/a", False))


def test_pod_selector_or_namespace_selector(net):
    outside = net.in_namespace("x", operator="NotIn")
    peers = [{"namespaceSelector": outside}, {"podSelector": B}]
    net.enforce(net.policy("x", pods=A, ingress=[{"from": peers}]))
    net.expect(80, ("x/c", "x/a", False))


def test_pod_selector_and_namespace_selector(net):
    outside = net.in_namespace("x", operator="NotIn")
    net.enforce(
        net.policy("x", pods=A, ingress=[{"from": [{"namespaceSelector": outside, "podSelector": B}]}])
    )
    net.expect(80, ("*", "x/a", False), ("y/b", "x/a", True), ("z/b", "x/a", True))


def test_multiple_pod_selectors_and_namespace_selectors(net):
    outside = net.in_namespace("x", operator="NotIn")
    peer = {"namespaceSelector": outside, "podSelector": among("pod", "b", "c")}
    net.enforce(net.policy("x", pods=A, ingress=[{"from": [peer]}]))
    net.expect(80, ("x", "x/a", False), ("y/a", "x/a", False), ("z/a", "x/a", False))


def test_any_pod_selectors(net):
    net.enforce(net.policy("x", pods=A, ingress=[{"from": [{"podSelector": B}, {"podSelector": C}]}]))
    net.expect(80, ("*", "x/a", False), ("x/b", "x/a", True), ("x/c", "x/a", True))


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_only_a_pod_in_a_different_namespace(net, protocol):
    peer = {"namespaceSelector": net.in_namespace("y"), "podSelector": A}
    net.enforce(net.policy("x", pods=A, ingress=[{"from": [peer]}]))
    net.expect(80, ("*", "x/a", False), ("y/a", "x/a", True), protocol=protocol)


def test_default_namespace_label(net):
    elsewhere = {"namespaceSelector": net.in_namespace("y", operator="NotIn")}
    net.enforce(net.policy("x", pods=A, egress=[{"to": [elsewhere]}]))
    net.expect(80, ("x/a", "y", False))


def test_deny_ingress_from_pods_on_other_namespaces(net):
    net.enforce(net.policy("x", ingress=[{"from": [{"podSelector": ANY}]}]))
    net.expect(80, ("y", "x", False), ("z", "x", False))


def test_deny_egress_from_pods_based_on_pod_selector(net):
    net.enforce(net.policy("x", pods=A, egress=[]))
    net.expect(80, ("x/a", "*", False))


def test_deny_egress_from_all_pods_in_a_namespace(net):
    net.enforce(net.policy("x", egress=[]))
    net.expect(80, ("x", "*", False))


def test_default_deny_ingress_of_udp(net):
    net.enforce(net.policy("x", ingress=[]))
    net.expect(80, ("*", "x", False), protocol="UDP")


# --- ports and protocols ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_ports(net, protocol):
    peer = {"namespaceSelector": net.in_namespace("y")}
    rule = {"from": [peer], "ports": [{"protocol": protocol, "port": 81}]}
    net.enforce(net.policy("x", pods=A, ingress=[rule]))
    net.expect(81, ("*", "x/a", False), ("y", "x/a", True), protocol=protocol)
    net.expect(80, ("*", "x/a", False), protocol=protocol)


def test_stacked_policies_with_overlapping_pod_selectors(net):
    peers = [{"namespaceSelector": net.in_namespace("y")}]
    first = net.policy("x", pods=A, ingress=[{"from": peers, "ports": tcp(81)}])
    net.enforce(first)
    net.expect(81, ("*", "x/a", False), ("y", "x/a", True))
    net.expect(80, ("*", "x/a", False))
    net.enforce(first, net.policy("x", pods=A, ingress=[{"from": peers, "ports": tcp(80)}]))
    net.expect(80, ("*", "x/a", False), ("y", "x/a", True))


def test_allow_all(net):
    net.enforce(net.policy("x", ingress=[{}]))
    net.expect(80)
    net.expect(81)


def test_ingress_on_one_named_port(net):
    net.enforce(net.policy("x", ingress=[{"ports": tcp("serve-81-tcp")}]))
    net.expect(81)
    net.expect(80, ("*", "x", False))


def test_ingress_from_a_namespace_on_one_named_port(net):
    peers = [{"namespaceSelector": net.in_namespace("y")}]
    net.enforce(net.policy("x", pods=A, ingress=[{"from": peers, "ports": tcp("serve-80-tcp")}]))
    net.expect(80, ("*", "x/a", False), ("y", "x/a", True))
    net.expect(81, ("*", "x/a", False))


def test_egress_on_one_named_port(net):
    net.enforce(net.policy("x", egress=[{"ports": tcp("serve-80-tcp")}]))
    net.expect(80)
    net.expect(81, ("x", "*", False))


def test_any_port_on_a_specific_protocol(net):
    net.enforce(net.policy("x", pods=A, ingress=[{"ports": [{"protocol": "TCP"}]}]))
    net.expect(80)
    net.expect(80, ("*", "x/a", False), protocol="UDP")


def test_a_range_of_ports(net):
    net.enforce(net.policy("x", ingress=[{"ports": tcp(70, endPort=80)}]))
    net.expect(80)
    net.expect(81, ("*", "x", False))


def test_sctp_is_not_mistaken_for_tcp(net):
    allow = net.policy("x", pods=A, ingress=[{"ports": [{"protocol": "SCTP", "port": 81}]}])
    net.enforce(net.policy("x", ingress=[]), allow)
    net.expect(81, ("*", "x", False))


def test_a_policy_that_allows_sctp_isolates(net):
    net.enforce(net.policy("x", pods=A, ingress=[{"ports": [{"protocol": "SCTP", "port": 80}]}]))
    net.expect(81, ("*", "x/a", False))


def test_tcp_when_a_policy_specifies_only_udp(net):
    net.enforce(net.policy("x", pods=A, ingress=[{"ports": [{"protocol": "UDP", "port": 81}]}]))
    net.expect(81, ("*", "x/a", False))
    net.expect(81, protocol="UDP")


# --- both directions -------------------------------------------------------------------------------------


def test_ingress_and_egress_together(net):
    net.enforce(
        net.policy("x", pods=A, ingress=[{"from": [{"podSelector": B}]}], egress=[{"ports": tcp(80)}])
    )
    net.expect(80, ("*", "x/a", False), ("x/b", "x/a", True))
    net.expect(81, ("*", "x/a", False), ("x/a", "*", False), ("x/b", "x/a", True))


def test_egress_denied_on_the_client_side_although_the_server_allows_it(net):
    to = {"namespaceSelector": net.in_namespace("y"), "podSelector": A}
    source = {"namespaceSelector": net.in_namespace("x"), "podSelector": A}
    net.enforce(
        net.policy("x", pods=A, egress=[{"to": [to]}]),
        net.policy("y", pods=A, ingress=[{"from": [source]}]),
        net.policy("y", pods=B, ingress=[{"from": [source]}]),
    )
    denied = [("x/a", "*", False), ("*", "y/a", False), ("*", "y/b", False)]
    net.expect(80, *denied, ("x/a", "y/a", True))


def test_egress_to_a_server_in_a_different_namespace(net):
    peer = {"namespaceSelector": net.in_namespace("y"), "podSelector": A}
    net.enforce(net.policy("x", pods=A, egress=[{"to": [peer]}]))
    net.expect(80, ("x/a", "*", False), ("x/a", "y/a", True))


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_allow_all_takes_precedence(net, direction):
    pairs = ("*", "x", False) if direction == "ingress" else ("x", "*", False)
    first = net.policy("x", **{direction: [{"ports": tcp(80)}]})
    net.enforce(first)
    net.expect(81, pairs)
    net.enforce(first, net.policy("x", **{direction: [{}]}))
    net.expect(81)


def test_ingress_and_egress_are_independent(net):
    allow = net.policy("x", pods=A, egress=[{}])
    net.enforce(allow)
    net.expect(80)
    net.enforce(allow, net.policy("x", pods=A, ingress=[]))
    net.expect(80, ("*", "x/a", False))


# --- blocks of addresses ---------------------------------------------------------------------------------


def test_egress_to_a_server_in_a_cidr_block(net):
    net.enforce(net.policy("x", pods=A, egress=[{"to": [{"ipBlock": {"cidr": f"{net.ips['y/b']}/32"}}]}]))
    net.expect(80, ("x/a", "*", False), ("x/a", "y/b", True))


def test_except_and_then_a_policy_that_allows_the_exception(net):
    server = f"{net.ips['x/b']}/32"
    around = ipaddress.ip_network(f"{net.ips['x/a']}/4", strict=False)
    block = {"cidr": str(around), "except": [server]}
    net.enforce(net.policy("x", pods=A, name="block", egress=[{"to": [{"ipBlock": block}]}]))
    net.expect(80, ("x/a", "x/b", False))
    net.enforce(net.policy("x", pods=A, name="block", egress=[{"to": [{"ipBlock": {"cidr": server}}]}]))
    net.expect(80, ("x/a", "*", False), ("x/a", "x/b", True))
    both = [{"ipBlock": block}, {"ipBlock": {"cidr": server}}]
    net.enforce(net.policy("x", pods=A, name="block", egress=[{"to": both}]))
    net.expect(80)


# --- changes ---------------------------------------------------------------------------------------------


def test_updated_policy(net):
    net.enforce(net.policy("x", name="changes", ingress=[{}]))
    net.expect(81)
    net.enforce(net.policy("x", name="changes", ingress=[]))
    net.expect(81, ("*", "x", False))


def test_ingress_from_an_updated_namespace(net):
    label = labelled(ns2="updated")
    net.enforce(net.policy("x", pods=A, ingress=[{"from": [{"namespaceSelector": label}]}]))
    net.expect(80, ("*", "x/a", False))
    name = net.spaces["y"].name
    net.cluster.kubectl("label", "namespace", name, "ns2=updated")
    try:
        net.expect(80, ("*", "x/a", False), ("y", "x/a", True))
    finally:
        net.cluster.kubectl("label", "namespace", name, "ns2-")
    net.expect(80, ("*", "x/a", False))


def test_ingress_from_an_updated_pod(net):
    label = labelled(pod="b", pod2="updated")
    net.enforce(net.policy("x", pods=A, ingress=[{"from": [{"podSelector": label}]}]))
    net.expect(80, ("*", "x/a", False))
    net.spaces["x"].kubectl("label", "pod", "b", "pod2=updated")
    try:
        net.expect(80, ("*", "x/a", False), ("x/b", "x/a", True))
    finally:
        net.spaces["x"].kubectl("label", "pod", "b", "pod2-")
    net.expect(80, ("*", "x/a", False))


def test_deny_ingress_to_an_updated_pod(net):
    net.enforce(net.policy("x", pods=labelled(target="isolated"), ingress=[]))
    net.expect(80)
    net.spaces["x"].kubectl("label", "pod", "a", "target=isolated")
    try:
        net.expect(80, ("*", "x/a", False))
    finally:
        net.spaces["x"].kubectl("label", "pod", "a", "target-")
    net.expect(80)


def test_policies_stop_after_they_are_deleted(net):
    net.enforce(net.policy("x", ingress=[], egress=[]))
    net.expect(80, ("x", "*", False), ("*", "x", False))
    net.enforce()
    net.expect(80)


# --- what translation of addresses does not get around ---------------------------------------------------


def test_services_node_ports_and_the_node_itself(net):
    """A policy of the server holds behind a cluster IP and a node port; its own node is not a stranger."""
    space = net.spaces["x"]
    ports = [{"port": 80, "targetPort": 80}]
    spec = {"type": "NodePort", "selector": {"pod": "b"}, "ports": ports}
    space.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b"}, "spec": spec})
    service = space.get("service", "b")["spec"]
    nodes = json.loads(net.cluster.kubectl("get", "nodes", "-o", "json"))["items"]
    near, far = (
        next(
            entry["address"]
            for entry in next(n for n in nodes if n["metadata"]["name"] == name)["status"]["addresses"]
            if entry["type"] == "InternalIP"
        )
        for name in ("n2", "n1")
    )
    ways = [(service["clusterIP"], 80), (near, service["ports"][0]["nodePort"])]
    ways.append((far, service["ports"][0]["nodePort"]))
    try:
        net.enforce()
        for address, port in ways:
            net.reached("y/a", address, port, True)
        net.enforce(net.policy("x", pods=B, ingress=[{"from": [{"podSelector": C}]}]))
        for address, port in ways:
            net.reached("y/a", address, port, False)
        net.reached("x/c", *ways[0], True)
        net.cluster.node("n2", "busybox", "ping", "-c1", "-W2", net.ips["x/b"])
        net.enforce(net.policy("y", pods=A, egress=[{"to": [{"podSelector": B}]}]))
        for address, port in ways:
            net.reached("y/a", address, port, False)
    finally:
        space.kubectl("delete", "service", "b")
