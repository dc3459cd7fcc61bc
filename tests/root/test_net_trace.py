"""`nodelet net trace` on a real kernel: each hop is broken by hand, and that hop is the one named.

Two nodes with an overlay, as in test_overlay; pods `web` and `db` on node 1, `far` on node 2.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from pathlib import Path

import pytest
from lan import Lan, ping
from test_overlay import Cluster
from test_policy_rules import picture_of, policy
from test_policy_rules import pod as described

from agent.explain import nettables, nettargets, nettrace
from agent.explain.nettrace import Hop
from agent.policy.kernel import NftKernel
from agent.services.iptables import IptablesBackEnd
from agent.services.picture import Endpoint, VirtualPort, VirtualService
from agent.services.rules import Settings
from host import processes

VIP = "10.96.0.1"


class Net:
    """Node 1 as it is traced."""

    def __init__(self, lan: Lan, folder: Path) -> None:
        self.cluster = Cluster(lan, folder)
        assert self.cluster.sync() == []
        self.node, self.other = lan.nodes
        self.where: dict[str, Path] = {}
        self.ips: dict[str, str] = {}
        for name, node in (("web", self.node), ("db", self.node), ("far", self.other)):
            self.where[name], self.ips[name] = node.add_pod(name)

    def serve(self, *pods: str) -> None:
        """The Service default/shop leads to these pods' ports 8080."""
        ends = tuple(Endpoint(self.ips[pod], 8080) for pod in pods)
        port = VirtualPort("default/shop:http", "tcp", VIP, 80, cluster=ends, has_endpoints=bool(ends))
        pictures = {"default/shop": VirtualService("default/shop", (port,))}
        self.node.run(lambda: asyncio.run(IptablesBackEnd(Settings()).sync(pictures, pictures)))

    def run(self, *commands: str) -> None:
        for line in commands:
            self.node.run(lambda line=line: processes.run(line.split()))

    def reach(self) -> None:
        """Let the kernel learn the neighbours that a trace looks at."""
        assert ping(self.where["web"], self.ips["db"])
        assert ping(self.node.netns, self.ips["db"])
        assert ping(self.where["web"], self.ips["far"])

    def trace(self, source: str, target: str, port: int = 0) -> list[Hop]:
        def work() -> list[Hop]:
            tables = nettables.read()
            ends = [nettargets.find(tables, word) for word in (source, target)]
            question = nettrace.Question(
                ends[0].address, ends[1].address, "tcp", port or ends[1].port or 80, ends[1].service
            )
            return nettrace.trace(tables, question)

        return self.node.run(work)

    def lost(self, source: str, target: str) -> str:
        """Where, and why; fails when nothing is in the way."""
        hop = next(hop for hop in self.trace(source, target) if not hop.ok)
        return f"{hop.table}: {hop.text}"

    def whole(self, source: str, target: str) -> bool:
        return all(hop.ok for hop in self.trace(source, target))


@pytest.fixture
def net(new_netns: Callable[[str], Path], tmp_path: Path) -> Net:
    lan = Lan(new_netns, tmp_path)
    lan.add_node()
    lan.add_node()
    net = Net(lan, tmp_path)
    net.reach()
    net.serve("db", "far")
    return net


def test_nothing_in_the_way(net: Net) -> None:
    far = net.ips["far"]
    assert net.whole("web", "db")
    assert net.whole("web", far)
    assert net.whole(far, "web")
    assert net.whole("web", "203.0.113.9")
    hops = net.trace("web", "default/shop:http")
    assert all(hop.ok for hop in hops)
    assert [hop.text for hop in hops if hop.table == "endpoint"] == [
        f"1 of 2: {net.ips['db']} port 8080",
        f"2 of 2: {far} port 8080",
    ]


def test_the_hops_to_a_pod_of_this_node(net: Net) -> None:
    db, veth = net.ips["db"], veth_of(net, "db")
    net.run(f"ip link set {veth} down")
    assert net.lost("web", "db").endswith("default/db is down")
    net.run(f"ip link set {veth} up", f"ip link set {veth} nomaster")
    assert net.lost("web", "db").endswith("default/db is in no bridge")
    net.run(f"ip link set {veth} master cbr0")
    net.run(f"ip neigh replace {db} lladdr 02:00:00:00:00:99 dev cbr0 nud permanent")
    assert ping(net.where["db"], "10.244.1.1", timeout=0.5) is False  # the answer goes to a MAC of nobody
    assert net.lost("web", "db").startswith("neighbour: ")
    net.run(f"ip neigh del {db} dev cbr0", f"ip route add {db} via 192.0.2.254 dev eth0")
    assert "is on cbr0" in net.lost("web", "db")
    net.run(f"ip route del {db}", f"ip addr del {db.rpartition('.')[0]}.1/24 dev cbr0")
    assert net.lost("web", "db").startswith("route: ")


def test_the_hops_to_a_pod_of_another_node(net: Net) -> None:
    far, cidr = net.ips["far"], net.other.pod_cidr
    gateway = str(ipaddress.ip_network(cidr).network_address)
    mac = next(n for n in fdb(net) if n[1] == net.other.ip)[0]

    def heal() -> None:
        assert net.cluster.sync() == []
        assert net.whole("web", far)

    net.run(f"bridge fdb del {mac} dev flannel.1 dst {net.other.ip}")
    assert net.lost("web", far) == f"fdb: no node for {mac} on flannel.1"
    assert "reply: to" in net.lost(far, "db")
    heal()
    net.run(f"ip neigh del {gateway} dev flannel.1")
    assert net.lost("web", far) == f"neighbour: no entry for {gateway} on flannel.1"
    heal()
    net.run(f"ip neigh replace {gateway} lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent")
    assert net.lost("web", far) == "fdb: no node for 02:00:00:00:00:99 on flannel.1"
    heal()
    net.run(f"ip route del {cidr}", "ip route del default")
    assert net.lost("web", far) == f"route: no route to {far}"
    heal()
    net.run("ip link set flannel.1 down")
    assert net.lost("web", far).startswith("route: ")
    heal()
    net.run("ip link set eth0 down")
    assert net.lost("web", far).startswith("underlay: no way to")


def test_the_answer_has_a_way_of_its_own(net: Net) -> None:
    """Somebody's route takes replies to a pod off its bridge: the request arrives, the answer does not."""
    net.run(f"ip route add {net.ips['web']} via 192.0.2.254 dev eth0")
    assert not ping(net.where["web"], net.ips["far"], timeout=0.5)
    found = net.lost("web", net.ips["far"])
    assert found.startswith(f"reply: to {net.ips['web']}: route: ")
    assert "is on cbr0" in found


def test_forwarding_that_is_off_or_closed(net: Net) -> None:
    far = net.ips["far"]
    assert net.trace("web", far)[-1].ok
    net.node.run(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("0"))
    assert net.lost("web", far) == "forward: net.ipv4.ip_forward is 0: set it to 1"
    net.node.run(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
    net.run("iptables -P FORWARD DROP")
    assert net.whole("web", far)  # pod traffic is accepted by a rule of ours
    net.run("iptables -F FORWARD")
    assert not ping(net.where["web"], far, timeout=0.5)
    assert "does not lead to NODELET-FORWARD" in net.lost("web", far)


def test_what_is_wrong_with_a_service(net: Net) -> None:
    net.run("iptables -t nat -F PREROUTING")
    assert "PREROUTING does not lead to KUBE-SERVICES" in net.lost("web", "shop")
    net.serve("db", "far")
    assert net.whole("web", "shop")
    chain = net.node.run(
        lambda: processes.run(["iptables", "-t", "nat", "-S", "KUBE-SERVICES"]).stdout.decode()
    )
    service = next(word for word in chain.split() if word.startswith("KUBE-SVC-"))
    net.run(f"iptables -t nat -F {service}")
    assert f"{service} leads to no endpoint" in net.lost("web", "shop")
    net.serve()
    assert net.lost("web", "shop") == f"service: {VIP} port 80 is default/shop:http, which has no endpoints"


def test_policies_of_either_end(net: Net) -> None:
    pods = [
        {**described(uid, labels={"app": name}), "name": f"a-{name}", "ips": [net.ips[name]]}
        for uid, name in (("a0", "web"), ("a1", "db"))
    ]
    only_db = {"podSelector": {"matchLabels": {"app": "db"}}}

    def enforce(*policies: dict) -> None:
        text = picture_of(list(policies), pods, {"ns1": {}}).table.whole()
        net.node.run(lambda: NftKernel().write(text))

    enforce(policy("closed", **only_db))
    assert not ping(net.where["web"], net.ips["db"], timeout=0.5)
    assert net.lost("web", "db").endswith("the server is isolated, and none of ns1/closed allows it")
    hops = net.trace("web", "shop")
    assert [hop.table for hop in hops if not hop.ok] == ["policy"]  # one endpoint; the other is reached
    assert hops[-1].ok
    enforce(policy("silent", **only_db, policyTypes=["Egress"]))
    assert net.whole("web", "db")
    assert "the client is isolated" in net.lost("db", net.ips["far"])


def veth_of(net: Net, pod: str) -> str:
    tables = net.node.run(nettables.read)
    return next(port.link.name for port in tables.pods if port.pod == f"default/{pod}")


def fdb(net: Net) -> list[tuple[str, str]]:
    tables = net.node.run(nettables.read)
    return [(n.mac, str(n.address)) for entries in tables.fdb.values() for n in entries if n.address]
