"""Row G04 once more, with policies that the upstream tests do not have, and no first packet (P20).

Who should reach whom is what `policy_oracle` reads out of the objects.
"""

from __future__ import annotations

import ipaddress

import policy_oracle
from first_packet import denied_pods_send_nothing
from kit import until
from netpol import PORTS, Matrix, Pair, among, labelled, names


def wanted(net: Matrix, policies: list[dict], port: int) -> set[Pair]:
    """Who reaches whom over TCP, as the specification says."""
    pods = [
        {
            "name": one,
            "namespace": net.spaces[one[0]].name,
            "labels": {"pod": one[2]},
            "ips": [net.ips[one]],
            "ports": {("TCP", f"serve-{number}-tcp"): number for number in PORTS},
        }
        for one in names("*")
    ]
    spaces = {
        space.name: {"ns": short, "kubernetes.io/metadata.name": space.name}
        for short, space in net.spaces.items()
    }
    return {
        (client, server)
        for client in net.ips
        for server in net.ips
        if policy_oracle.allowed(
            policies,
            pods,
            spaces,
            client=net.ips[client],
            server=net.ips[server],
            protocol="TCP",
            port=port,
            local=set(net.ips),
        )
    }


def check(net: Matrix, *policies: dict) -> None:
    """The policies' own effect, on both ports; there must be one."""
    enforced = net.enforce(*policies)
    reached = {port: wanted(net, enforced, port) for port in PORTS}
    assert sum(map(len, reached.values())) < 9 * 9 * len(PORTS)
    for port, pairs in reached.items():
        net.wait(pairs, port)


def test_g04_namespaces_and_pods_by_expressions_and_a_named_port(net):
    peer = {"namespaceSelector": among("ns", "z", operator="NotIn"), "podSelector": among("pod", "a", "b")}
    rule = {"from": [peer], "ports": [{"port": "serve-81-tcp"}]}
    check(net, net.policy("x", pods=labelled(pod="a"), ingress=[rule]))


def test_g04_several_policies_add_up_ranges_of_ports_and_egress(net):
    check(
        net,
        net.policy("y", ingress=[], egress=[]),
        net.policy("y", ingress=[{"from": [{"namespaceSelector": labelled(ns="x")}]}]),
        net.policy("y", egress=[{"to": [{"namespaceSelector": {}}], "ports": [{"port": 81, "endPort": 90}]}]),
        net.policy("z", pods=labelled(pod="c"), ingress=[{}]),
    )


def test_g04_ip_blocks_and_a_table_that_is_put_back(net):
    subnet = str(ipaddress.ip_network(f"{net.ips['y/b']}/24", strict=False))
    block = {"ipBlock": {"cidr": "10.0.0.0/8", "except": [subnet]}}
    enforced = net.policy("x", pods=labelled(pod="a"), ingress=[{"from": [block]}])
    check(net, enforced)
    net.cluster.node("n1", "nft", "delete", "table", "inet", "nodelet-policy")
    check(net, enforced)
    net.enforce()
    until(
        "no table without policies",
        lambda: "nodelet-policy" not in net.cluster.node("n1", "nft", "list", "tables"),
    )


def test_p20_not_one_packet_before_the_policy(ns):
    denied_pods_send_nothing(ns, starts=30, at_once=30)
