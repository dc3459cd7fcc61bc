"""Rows G04 and E03's policies: the essentials of the upstream network policy matrix, and no first packet.

Three namespaces with three pods each, on both nodes, two ports each. Who should reach whom is what
`policy_oracle` reads out of the objects.
"""

from __future__ import annotations

import json
import re
import uuid
from concurrent.futures import ThreadPoolExecutor

import policy_oracle
import pytest
from kit import Namespace, container, pod, until

PORTS = (80, 81)
SERVE = "mkdir -p /www; echo hi > /www/index.html; httpd -p 81 -h /www; exec httpd -f -p 80 -h /www"
NAMED = [{"name": "http", "containerPort": 80}, {"name": "other", "containerPort": 81}]


class Matrix:
    """The nine pods, and what they see of each other."""

    def __init__(self, cluster) -> None:
        self.cluster = cluster
        tail = uuid.uuid4().hex[:5]
        self.spaces = {short: Namespace(cluster, f"policies-{short}-{tail}") for short in "xyz"}
        self.pods: list[dict] = []

    def make(self) -> None:
        for short, space in self.spaces.items():
            self.cluster.kubectl("create", "namespace", space.name)
            self.cluster.kubectl("label", "namespace", space.name, f"ns={short}")
        for space in self.spaces.values():
            until("its service account", lambda s=space: s.kubectl("get", "sa", "-o", "name"))
            pods = [
                pod(name, container(SERVE, ports=NAMED), node=node, labels={"pod": name})
                for name, node in (("a", "n1"), ("b", "n2"), ("c", "n1"))
            ]
            space.apply(*pods)
        for short, space in self.spaces.items():
            for name in "abc":
                ips = [entry["ip"] for entry in space.wait_running(name)["status"]["podIPs"]]
                self.pods.append(
                    {
                        "name": f"{short}/{name}",
                        "namespace": space.name,
                        "labels": {"pod": name},
                        "ips": ips,
                        "ports": {("TCP", "http"): 80, ("TCP", "other"): 81},
                    }
                )

    def seen(self) -> set[tuple[str, str, int]]:
        """(client, server, port) of every connection that is made."""
        tries = [
            f"(echo | nc -w 2 {one['ips'][0]} {port} >/dev/null 2>&1 && echo {one['name']} {port}) &"
            for one in self.pods
            for port in PORTS
        ]
        script = "\n".join([*tries, "wait"])

        def ask(client: dict) -> set[tuple[str, str, int]]:
            short, name = client["name"].split("/")
            lines = self.spaces[short].sh(name, script).splitlines()
            return {(client["name"], line.split()[0], int(line.split()[1])) for line in lines}

        with ThreadPoolExecutor(9) as threads:
            return set().union(*threads.map(ask, self.pods))

    def wanted(self, policies: list[dict]) -> set[tuple[str, str, int]]:
        labels = {
            space.name: {"ns": short, "kubernetes.io/metadata.name": space.name}
            for short, space in self.spaces.items()
        }
        local = {one["name"] for one in self.pods}
        return {
            (client["name"], server["name"], port)
            for client in self.pods
            for server in self.pods
            for port in PORTS
            if policy_oracle.allowed(
                policies,
                self.pods,
                labels,
                client=client["ips"][0],
                server=server["ips"][0],
                protocol="TCP",
                port=port,
                local=local,
            )
        }

    def enforce(self, *policies: dict) -> list[dict]:
        """Exactly these policies, as objects with their namespace."""
        for space in self.spaces.values():
            space.kubectl("delete", "networkpolicy", "--all", "--wait=false")
        for one in policies:
            short = one["metadata"]["namespace"]
            one["metadata"]["namespace"] = self.spaces[short].name
            self.spaces[short].apply(one)
        return list(policies)


@pytest.fixture(scope="module")
def matrix(cluster):
    made = Matrix(cluster)
    try:
        made.make()
        yield made
    finally:
        names = [space.name for space in made.spaces.values()]
        for name in names:
            cluster.kubectl("delete", "pods", "--all", "-n", name, "--grace-period=1", "--wait=false")
        cluster.kubectl("delete", "namespace", *names)


def policy(namespace: str, **spec: object) -> dict:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"p-{uuid.uuid4().hex[:5]}", "namespace": namespace},
        "spec": {"podSelector": {}, **spec},
    }


def labelled(**labels: str) -> dict:
    return {"matchLabels": labels}


NOT_Z = {"matchExpressions": [{"key": "ns", "operator": "NotIn", "values": ["z"]}]}
A_OR_B = {"matchExpressions": [{"key": "pod", "operator": "In", "values": ["a", "b"]}]}
STEPS = {
    "deny all ingress": lambda: [policy("x")],
    "deny all egress": lambda: [policy("x", policyTypes=["Egress"])],
    "ingress from pods of the same namespace": lambda: [
        policy("x", ingress=[{"from": [{"podSelector": {}}]}])
    ],
    "namespaces and pods by expressions, a named port": lambda: [
        policy(
            "x",
            podSelector=labelled(pod="a"),
            ingress=[
                {
                    "from": [{"namespaceSelector": NOT_Z, "podSelector": A_OR_B}],
                    "ports": [{"port": "other"}],
                }
            ],
        )
    ],
    "several policies add up, ranges of ports, egress": lambda: [
        policy("y", policyTypes=["Ingress", "Egress"]),
        policy("y", ingress=[{"from": [{"namespaceSelector": labelled(ns="x")}]}]),
        policy("y", egress=[{"to": [{"namespaceSelector": {}}], "ports": [{"port": 81, "endPort": 90}]}]),
        policy("z", podSelector=labelled(pod="c"), ingress=[{}]),
    ],
}


@pytest.mark.parametrize("step", STEPS)
def test_g04_matrix(matrix, step):
    policies = matrix.enforce(*STEPS[step]())
    wanted = matrix.wanted(policies)
    assert len(wanted) < 9 * 9 * len(PORTS)

    def difference():
        seen = matrix.seen()
        return "equal" if seen == wanted else None

    try:
        until(step, difference, timeout=30)
    except AssertionError:
        seen = matrix.seen()
        raise AssertionError(f"missing {sorted(wanted - seen)}, too many {sorted(seen - wanted)}") from None


def test_g04_ip_blocks_and_a_table_that_is_put_back(matrix):
    far = next(one for one in matrix.pods if one["name"] == "y/b")
    net = re.sub(r"\d+$", "0/24", far["ips"][0])
    block = {"ipBlock": {"cidr": "10.0.0.0/8", "except": [net]}}
    policies = matrix.enforce(policy("x", podSelector=labelled(pod="a"), ingress=[{"from": [block]}]))
    wanted = matrix.wanted(policies)
    until("the block", lambda: matrix.seen() == wanted, timeout=30)
    matrix.cluster.node("n1", "nft", "delete", "table", "inet", "nodelet-policy")
    until("the table again", lambda: matrix.seen() == wanted, timeout=60)
    matrix.enforce()
    until(
        "no table without policies",
        lambda: "nodelet-policy" not in matrix.cluster.node("n1", "nft", "list", "tables"),
    )


def test_p20_not_one_packet_before_the_policy(ns):
    """Pods whose first act is to send: of those a policy forbids to, nothing ever arrives."""
    ns.apply(
        pod("receiver", node="n2"),
        policy(ns.name, podSelector=labelled(app="denied"), policyTypes=["Egress"]),
    )
    address = ns.wait_running("receiver")["status"]["podIP"]
    until("the first policy", lambda: "NetworkPolicy" in ns.kubectl("get", "netpol", "-o", "json"))

    def received() -> int:
        """Echo requests that have come in."""
        lines = [line.split() for line in ns.sh("receiver", "grep ^Icmp: /proc/net/snmp").splitlines()]
        return int(dict(zip(*lines, strict=True))["InEchos"])

    def sender(name: str, app: str, node: str) -> dict:
        script = f"ping -c 3 -i 0.2 -W 1 {address}; exit 0"
        return pod(name, container(script), node=node, labels={"app": app}, restartPolicy="Never")

    nodes = ("n1", "n2")
    before = received()
    ns.apply(*(sender(f"denied-{n}", "denied", nodes[n % 2]) for n in range(30)))
    until("all have tried", lambda: finished(ns, "denied") == 30, timeout=120)
    assert received() == before
    ns.apply(*(sender(f"free-{n}", "free", nodes[n % 2]) for n in range(4)))
    until("the others have tried", lambda: finished(ns, "free") == 4)
    assert received() >= before + 12


def finished(ns, app: str) -> int:
    listed = json.loads(ns.kubectl("get", "pods", "-l", f"app={app}", "-o", "json"))["items"]
    return sum(one["status"].get("phase") == "Succeeded" for one in listed)
