"""NetworkPolicy on a real kernel: packets between pods of one bridge, of two nodes, and through a Service.

Pods `web` and `db` are on node 1, `far` is on node 2; the policies of node 1 are written.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lan import Lan, Machine, ping
from test_policy_rules import fact, picture_of, policy
from test_policy_rules import pod as described

from agent.explain import nettables
from agent.policy import rules, verdict
from agent.policy.kernel import NftKernel
from agent.policy.picture import Picture
from agent.policy.verdict import Flow
from host import netns, processes
from host.rules import nft
from host.rules.nft import Content


class Net:
    """Two nodes with three pods, and what one asks of them."""

    def __init__(self, make: Callable[[str], Path], folder: Path) -> None:
        lan = Lan(make, folder)
        self.near, self.far = lan.add_node(), lan.add_node()
        self.where: dict[str, Path] = {}
        self.pods: dict[str, dict] = {}
        for name, node, app in (("web", self.near, "web"), ("db", self.near, "db"), ("far", self.far, "web")):
            subnets = [node.pod_cidr, f"fd00:{node.number}::/64"]
            path, ip = node.add_pod(name, subnets=subnets, mtu=1500)
            shown = netns.run_in(
                path, lambda: processes.run(["ip", "-6", "-o", "addr", "show", "scope", "global"])
            )
            six = shown.stdout.decode().split("inet6 ")[1].split("/")[0]
            self.where[name] = path
            self.pods[name] = {
                **described("a0" if node is self.near else "b0", labels={"app": app}, http=8080),
                "name": ("a" if node is self.near else "b") + name,
                "ips": [ip, six],
            }
        self._route(self.near, self.far)
        self._route(self.far, self.near)
        self.kernel = NftKernel()
        self.picture = Picture()

    def _route(self, node: Machine, other: Machine) -> None:
        node.run(lambda: processes.run(["ip", "route", "add", other.pod_cidr, "via", other.ip]))

    def enforce(self, *policies: dict) -> None:
        """These policies and no others, in the kernel of node 1."""
        self.picture = picture_of(list(policies), list(self.pods.values()), {"ns1": {}})
        self.near.run(lambda: self.kernel.write(self.picture.table.whole()))
        self.picture.table.mark_written()

    def ip(self, name: str, family: int = 4) -> str:
        return str(self.pods[name]["ips"][0 if family == 4 else 1])

    def listen(self, name: str, port: int, kind: int = socket.SOCK_STREAM, family: int = 4) -> socket.socket:
        inet = socket.AF_INET if family == 4 else socket.AF_INET6
        sock = netns.open_socket(self.where[name], inet, kind, 0)
        sock.bind((self.ip(name, family), port))
        if kind == socket.SOCK_STREAM:
            sock.listen(8)
        sock.settimeout(1.0)
        return sock

    def connect(
        self, where: Path, target: str, port: int, kind: int = socket.SOCK_STREAM
    ) -> socket.socket | None:
        """A connection, or None where packets are dropped. Refused by the server counts as reached."""
        inet = socket.AF_INET6 if ":" in target else socket.AF_INET
        sock = netns.open_socket(where, inet, kind, 0)
        sock.settimeout(1.0)
        try:
            sock.connect((target, port))
        except TimeoutError:
            sock.close()
            return None
        except ConnectionRefusedError:
            pass
        return sock

    def reaches(self, source: str, target: str, port: int = 8080, family: int = 4) -> bool:
        return self.arrives(self.where[source], self.ip(target, family), port)

    def arrives(self, where: Path, target: str, port: int) -> bool:
        sock = self.connect(where, target, port)
        if sock is not None:
            sock.close()
        return sock is not None


@pytest.fixture
def net(new_netns: Callable[[str], Path], tmp_path: Path) -> Iterator[Net]:
    yield Net(new_netns, tmp_path)


DB = {"podSelector": {"matchLabels": {"app": "db"}}}
WEB = {"podSelector": {"matchLabels": {"app": "web"}}}


def test_denied_pods_are_reached_by_their_node_alone(net: Net) -> None:
    assert net.reaches("web", "db")
    assert net.reaches("web", "db", family=6)
    assert net.reaches("far", "db")
    net.enforce(policy("deny", **DB))
    before = net.near.run(net.kernel.dropped)
    assert not net.reaches("web", "db")
    assert not net.reaches("web", "db", family=6)
    assert not net.reaches("far", "db")
    assert net.near.run(net.kernel.dropped) >= before + 3
    assert net.arrives(net.near.netns, net.ip("db"), 8080)  # probes
    assert net.reaches("db", "far")
    assert net.reaches("db", "web", family=6)
    assert ping(net.where["db"], "10.244.1.1")
    net.enforce(policy("deny", **DB, policyTypes=["Egress"]))
    assert net.reaches("far", "db")
    assert not net.reaches("db", "far")
    assert not net.reaches("db", "web")
    assert ping(net.where["db"], "10.244.1.1")  # a pod and its node
    assert not ping(net.where["db"], net.far.ip, timeout=1.0)


def test_rules_let_through_what_they_name(net: Net) -> None:
    net.enforce(
        policy("p", **DB, ingress=[{"from": [WEB], "ports": [{"port": "http"}, {"port": 90, "endPort": 92}]}])
    )
    assert net.reaches("web", "db", 8080)
    assert net.reaches("far", "db", 8080)
    assert net.reaches("web", "db", 91, family=6)
    assert not net.reaches("web", "db", 93)
    assert not ping(net.where["web"], net.ip("db"), timeout=1.0)
    listed = net.near.run(nettables.read).policies  # what nodelet net trace goes by
    for source, port, family in (("web", 8080, 4), ("web", 93, 4), ("far", 8080, 4), ("web", 91, 6)):
        flow = Flow(net.ip(source, family), net.ip("db", family), "tcp", port)
        assert verdict.judge(listed, flow).passes is (port != 93)
    net.pods["far"]["labels"] = {"app": "other"}
    net.picture.put_pod(fact(net.pods["far"]))
    changes = net.picture.table.element_changes()
    assert changes
    net.near.run(lambda: net.kernel.write_elements(changes))
    assert not net.reaches("far", "db", 8080)
    blocks = [{"ipBlock": {"cidr": "10.244.0.0/16", "except": ["10.244.2.0/24"]}}]
    net.enforce(policy("p", **DB, ingress=[{"from": blocks}]))
    assert net.reaches("web", "db")
    assert not net.reaches("far", "db")
    assert ping(net.where["web"], net.ip("db"))


def test_each_family_of_a_dual_stack_pod_is_judged_by_itself(net: Net) -> None:
    four = {"ipBlock": {"cidr": "10.244.0.0/16"}}
    six = {"ipBlock": {"cidr": "fd00:1::/64", "except": [f"{net.ip('web', 6)}/128"]}}
    net.enforce(policy("p", **DB, ingress=[{"from": [four]}]))
    assert net.reaches("web", "db")
    assert not net.reaches("web", "db", family=6)
    net.enforce(policy("p", **DB, ingress=[{"from": [six]}]))
    assert not net.reaches("web", "db")
    assert not net.reaches("web", "db", family=6)
    net.enforce(policy("p", **DB, ingress=[{"from": [{"ipBlock": {"cidr": "fd00:1::/64"}}]}]))
    assert not net.reaches("web", "db")
    assert net.reaches("web", "db", family=6)
    net.enforce(policy("p", **DB, ingress=[{"from": [WEB], "ports": [{"port": "http"}]}]))
    for family in (4, 6):
        assert net.reaches("web", "db", 8080, family)
        assert not net.reaches("web", "db", 8081, family)
    net.enforce(policy("p", **WEB, policyTypes=["Egress"], egress=[{"to": [{"ipBlock": {"cidr": "::/0"}}]}]))
    assert not net.reaches("web", "db")
    assert net.reaches("web", "db", family=6)


def test_an_ipv6_pod_finds_its_neighbours_whatever_the_policies(net: Net) -> None:
    """Neighbour discovery is ICMPv6 and belongs to the link: a policy that dropped it would cut pods off."""
    net.enforce(policy("p", **DB, ingress=[{"from": [WEB]}]), policy("q", **WEB, ingress=[]))
    for pod in ("web", "db"):
        netns.run_in(net.where[pod], lambda: processes.run(["ip", "-6", "neigh", "flush", "dev", "eth0"]))
    assert net.reaches("web", "db", family=6)
    with net.listen("db", 8080, family=6) as server:
        client = net.connect(net.where["web"], net.ip("db", 6), 8080)
        assert client is not None
        peer, _ = server.accept()
        with client, peer:
            client.sendall(b"before")
            assert peer.recv(10) == b"before"
            peer.settimeout(1.0)
            net.enforce(policy("deny", **DB))
            client.sendall(b"after")
            with pytest.raises(TimeoutError):
                peer.recv(10)


def test_existing_connections_follow_the_policies_in_both_directions(net: Net) -> None:
    with net.listen("db", 8080) as server, net.listen("db", 53, socket.SOCK_DGRAM) as resolver:
        client = net.connect(net.where["far"], net.ip("db"), 8080)
        asker = net.connect(net.where["far"], net.ip("db"), 53, socket.SOCK_DGRAM)
        assert client is not None and asker is not None
        peer, _ = server.accept()
        peer.settimeout(1.0)
        with client, asker, peer:
            client.sendall(b"before")
            assert peer.recv(10) == b"before"
            asker.send(b"who")
            assert resolver.recv(10) == b"who"
            net.enforce(policy("deny", **DB))
            asker.send(b"who")
            resolver.sendto(b"you", asker.getsockname())
            client.sendall(b"after")
            for silent in (peer, asker, resolver):
                with pytest.raises(TimeoutError):
                    silent.recv(10)
            net.enforce(policy("allow", **DB, ingress=[{"from": [WEB]}]))
            peer.settimeout(20.0)  # TCP sends again by itself
            assert peer.recv(10) == b"after"
            asker.send(b"who")
            assert resolver.recv(10) == b"who"
            resolver.sendto(b"you", asker.getsockname())
            assert asker.recv(10) == b"you"


def test_policies_see_the_pod_behind_a_service(net: Net) -> None:
    match = ["-d", "10.96.0.1", "-p", "tcp", "--dport", "80"]
    target = ["-j", "DNAT", "--to-destination", f"{net.ip('db')}:8080"]
    rule = ["iptables", "-t", "nat", "-A", "PREROUTING", *match, *target]
    net.near.run(lambda: processes.run(rule))

    def through_the_service() -> bool:
        return net.arrives(net.where["web"], "10.96.0.1", 80)

    assert through_the_service()
    net.enforce(policy("p", **DB, ingress=[{"from": [WEB], "ports": [{"port": 8080}]}]))
    assert through_the_service()
    net.enforce(policy("p", **DB, ingress=[{"from": [WEB], "ports": [{"port": 80}]}]))
    assert not through_the_service()
    net.enforce(policy("p", **WEB, policyTypes=["Egress"], egress=[{"to": [DB], "ports": [{"port": 8080}]}]))
    assert through_the_service()
    net.enforce(
        policy("p", **WEB, policyTypes=["Egress"], egress=[{"to": [{"ipBlock": {"cidr": "10.96.0.0/16"}}]}])
    )
    assert not through_the_service()


def test_what_is_written_is_what_is_read_back(net: Net) -> None:
    """And whatever a stranger does to the table is seen."""
    net.enforce(
        policy("p", **DB, ingress=[{"from": [WEB], "ports": [{"port": "http"}]}]),
        policy("q", egress=[{"to": [{"ipBlock": {"cidr": "::/0", "except": ["fe80::/64", "fd00::/8"]}}]}]),
        policy(
            "r",
            ingress=[
                {"ports": [{"port": 90, "endPort": 92}, {"protocol": "UDP", "port": 53}]},
                {"ports": [{"protocol": "SCTP"}], "from": [{"ipBlock": {"cidr": "10.9.0.0/16"}}]},
                {"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.128.0.0/9", "10.0.0.0/9"]}}]},
            ],
        ),
    )
    wanted = net.picture.table.content
    assert net.near.run(lambda: net.kernel.touched()) is False
    assert net.near.run(lambda: net.kernel.differs(wanted)) == ""
    table = f"inet {rules.TABLE}"
    chain = rules.policy_chain("in", "ns1/p")
    for meddling in (
        "flush ruleset",
        f"delete table {table}",
        f"flush chain {table} {chain}",
        f"insert rule {table} forward accept",
        f"delete element {table} ingress-4 {{ {net.ip('db')} }}",
        f"add chain {table} mine",
        f"chain {table} forward {{ policy drop; }}",
        lambda: f"replace rule {table} {chain} handle {handle(net, chain)} accept",
    ):
        text = meddling if isinstance(meddling, str) else meddling()
        net.near.run(lambda text=text: nft.apply(text + "\n"))
        assert net.near.run(lambda: net.kernel.touched()) is True
        assert net.near.run(lambda: net.kernel.differs(wanted)) != "", meddling
        net.near.run(lambda: net.kernel.write(net.picture.table.whole()))
        assert net.near.run(lambda: net.kernel.differs(wanted)) == ""
    assert not net.reaches("far", "db", 81)


def handle(net: Net, chain: str) -> str:
    """Of the first rule of a chain."""
    listed = net.near.run(
        lambda: processes.run(["nft", "-a", "list", "chain", "inet", rules.TABLE, chain]).stdout.decode()
    )
    return next(line.split()[-1] for line in listed.splitlines() if "accept # handle" in line)


def test_an_nft_of_other_words_is_understood_after_one_look(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    net.enforce(policy("p", **DB, ingress=[{"from": [WEB], "ports": [{"port": "http"}]}]))
    wanted, read = net.picture.table.content, nft.read

    def reworded(family: str, name: str) -> Content | None:
        found = read(family, name)
        chains = {
            c: tuple(r.replace("saddr", "source") for r in listed) for c, listed in found.chains.items()
        }
        return Content(found.sets, chains)

    monkeypatch.setattr(nft, "read", reworded)
    assert net.near.run(lambda: net.kernel.differs(wanted)) != ""
    net.near.run(lambda: net.kernel.write(net.picture.table.whole(), whole=wanted))
    assert net.near.run(lambda: net.kernel.differs(wanted)) == ""
    chain = rules.policy_chain("in", "ns1/p")
    text = f"replace rule inet {rules.TABLE} {chain} handle {handle(net, chain)} accept\n"
    net.near.run(lambda: nft.apply(text))
    assert chain in net.near.run(lambda: net.kernel.differs(wanted))


def test_the_bridges_packets_are_filtered_only_with_the_switch(net: Net) -> None:
    """Why `filter_bridge` is called: without it a pod's neighbour on the bridge gets around its policies."""
    net.enforce(policy("deny", **DB))
    assert net.near.run(lambda: net.kernel.filter_bridge()) == ""
    assert not net.reaches("web", "db")
    net.near.run(lambda: Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text("0"))
    assert net.reaches("web", "db")
    assert net.near.run(lambda: net.kernel.filter_bridge()) == ""
    assert not net.reaches("web", "db")


def test_a_transaction_with_a_mistake_changes_nothing(net: Net) -> None:
    net.enforce(policy("deny", **DB))
    wanted = net.picture.table.content
    bad = f"add element inet {rules.TABLE} ingress-4 {{ 10.9.9.9 : goto nowhere }}\n"
    with pytest.raises(processes.ProcessFailed):
        net.near.run(lambda: net.kernel.write(f"flush chain inet {rules.TABLE} forward\n{bad}"))
    assert net.near.run(lambda: net.kernel.differs(wanted)) == ""
