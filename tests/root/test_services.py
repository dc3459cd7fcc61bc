"""Service rules in the kernel: connections through real iptables between pods, nodes and the outside.

node1 runs the rules and has three web pods and a client pod; node2 is a plain neighbour with one web pod,
and stands for the outside world too. Every web pod answers with its own address.
"""

from __future__ import annotations

import asyncio
import re
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from lan import Lan, Machine

from agent.api.structs import (
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    SessionAffinityConfig,
)
from agent.services import conntrack
from agent.services.iptables import IptablesBackEnd
from agent.services.picture import SERVICE_NAME_LABEL, NodeFacts, VirtualService, draw
from agent.services.proxy import Pace, ServiceProxy
from agent.services.rules import Settings
from host import netns, processes

T = TypeVar("T")
VIP, NODE_PORT, TARGET_PORT = "10.96.0.10", 30080, 8080


class Servers:
    """One thread that answers in many namespaces: TCP and UDP on 8080, with the address and the peer's."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Servers:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]

    def add(self, where: Path, address: str) -> None:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            listening = netns.open_socket(where, socket.AF_INET, kind)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((address, TARGET_PORT))
            if kind == socket.SOCK_STREAM:
                listening.listen(64)
            self._selector.register(listening, selectors.EVENT_READ, address)

    def _serve(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.1):
                server: socket.socket = key.fileobj  # type: ignore[assignment]
                if server.type == socket.SOCK_DGRAM:
                    _, peer = server.recvfrom(100)
                    server.sendto(f"{key.data} {peer[0]}".encode(), peer)
                    continue
                connection, peer = server.accept()
                connection.sendall(f"{key.data} {peer[0]}".encode())
                connection.close()


class Cluster:
    """node1 with rules, node2 without, and their pods."""

    def __init__(self, lan: Lan, servers: Servers) -> None:
        self.node, self.neighbour = lan.add_node(), lan.add_node()
        self.web = [self._web(self.node, f"web{number}", servers) for number in (1, 2, 3)]
        self.far = self._web(self.neighbour, "far", servers)
        self.client, self.client_ip = self.node.add_pod("client")
        for here, there in ((self.node, self.neighbour), (self.neighbour, self.node)):
            self._ip(here, "route", "add", there.pod_cidr, "via", there.ip)
        # Without a real router behind it, node1 would send redirects back, which use up the same rate limit
        # as the answer of REJECT.
        for device in ("all", "eth0"):
            setting = Path(f"/proc/sys/net/ipv4/conf/{device}/send_redirects")
            self.node.run(lambda setting=setting: setting.write_text("0"))
        self._ip(self.neighbour, "route", "add", "10.96.0.0/16", "via", self.node.ip)
        self.back_end = IptablesBackEnd(Settings(node_ip=self.node.ip))

    def _web(self, node: Machine, name: str, servers: Servers) -> tuple[Path, str]:
        where, address = node.add_pod(name)
        servers.add(where, address)
        return where, address

    def _ip(self, node: Machine, *words: str) -> None:
        node.run(lambda: processes.run(["ip", *words]))

    def on_node(self, work: Callable[[], Awaitable[T]]) -> T:
        async def main() -> T:
            return await work()

        return self.node.run(lambda: asyncio.run(main()))

    def sync(self, *services: VirtualService) -> Any:
        pictures = {service.key: service for service in services}
        return self.on_node(lambda: self.back_end.sync(pictures, list(pictures)))

    def saved(self) -> str:
        text = self.node.run(lambda: processes.run(["iptables-save"]).stdout.decode())
        return re.sub(r"\[\d+:\d+\]|# .*", "", text)


@pytest.fixture
def cluster(new_netns: Any, tmp_path: Path) -> Iterator[Cluster]:
    with Servers() as servers:
        yield Cluster(Lan(new_netns, tmp_path), servers)


def ask(where: Path, target: str, port: int, *, timeout: float = 3.0) -> tuple[str, str]:
    """(who answered, whom it saw) over a new TCP connection."""
    with netns.open_socket(where, socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        client.connect((target, port))
        answered, saw = client.recv(100).decode().split()
        return answered, saw


def service_objects(
    *addresses: str, protocol: str = "TCP", node_of: dict[str, str] | None = None, **spec: Any
) -> tuple[Service, EndpointSlice]:
    """The API objects of ns/web."""
    service = Service(
        metadata=ObjectMeta(name="web", namespace="ns"),
        spec=ServiceSpec(
            cluster_ip=VIP,
            cluster_ips=(VIP,),
            ports=(ServicePort(name="http", protocol=protocol, port=80, node_port=spec.pop("node_port", 0)),),
            **spec,
        ),
    )
    endpoints = tuple(
        Endpoint(
            addresses=(address,),
            conditions=EndpointConditions(ready=True),
            node_name=(node_of or {}).get(address, "node1"),
        )
        for address in addresses
    )
    one = EndpointSlice(
        metadata=ObjectMeta(name="web-1", namespace="ns", labels={SERVICE_NAME_LABEL: "web"}),
        address_type="IPv4",
        endpoints=endpoints,
        ports=(EndpointPort(name="http", protocol=protocol, port=TARGET_PORT),),
    )
    return service, one


def web(*addresses: str, **facts: Any) -> VirtualService:
    service, one = service_objects(*addresses, **facts)
    return draw(service, [one], key="ns/web", node=NodeFacts(name="node1"))


def test_cluster_ip_spreads_evenly_and_keeps_the_clients_address(cluster: Cluster) -> None:
    cluster.sync(web(*(address for _, address in cluster.web)))
    answers = [ask(cluster.client, VIP, 80) for _ in range(300)]
    hits = Counter(who for who, _ in answers)
    assert set(hits) == {address for _, address in cluster.web}
    assert all(60 <= count <= 140 for count in hits.values()), hits
    assert {saw for _, saw in answers} == {cluster.client_ip}


def test_hairpin_node_and_outside(cluster: Cluster) -> None:
    pod, address = cluster.web[0]
    cluster.sync(web(address, node_port=NODE_PORT, type="NodePort"))
    answered, saw = ask(pod, VIP, 80)
    assert answered == address and saw != address
    assert ask(cluster.node.netns, VIP, 80)[0] == address
    assert ask(cluster.neighbour.netns, VIP, 80)[0] == address


def test_node_port_also_without_an_endpoint_here(cluster: Cluster) -> None:
    far = cluster.far[1]
    cluster.sync(web(far, node_port=NODE_PORT, type="NodePort", node_of={far: "node2"}))
    assert ask(cluster.neighbour.netns, cluster.node.ip, NODE_PORT) == (far, cluster.node.ip)
    assert ask(cluster.client, cluster.node.ip, NODE_PORT)[0] == far
    with pytest.raises(ConnectionRefusedError):
        ask(cluster.node.netns, "127.0.0.1", NODE_PORT)


def test_external_traffic_policy_local_shows_the_client(cluster: Cluster) -> None:
    here, far = cluster.web[0][1], cluster.far[1]
    facts = {"node_port": NODE_PORT, "type": "NodePort", "external_traffic_policy": "Local"}
    cluster.sync(web(here, far, node_of={far: "node2"}, **facts))
    for _ in range(10):
        assert ask(cluster.neighbour.netns, cluster.node.ip, NODE_PORT) == (here, cluster.neighbour.ip)
    cluster.sync(web(far, node_of={far: "node2"}, **facts))
    with pytest.raises(TimeoutError):
        ask(cluster.neighbour.netns, cluster.node.ip, NODE_PORT, timeout=0.3)
    assert ask(cluster.client, cluster.node.ip, NODE_PORT)[0] == far


def test_no_endpoints_refuse_at_once(cluster: Cluster) -> None:
    cluster.sync(web(node_port=NODE_PORT, type="NodePort"))
    for where in (cluster.client, cluster.node.netns, cluster.neighbour.netns):
        with pytest.raises(OSError, match="refused"):
            ask(where, VIP, 80)
    with pytest.raises(ConnectionRefusedError):
        ask(cluster.neighbour.netns, cluster.node.ip, NODE_PORT)


def test_session_affinity(cluster: Cluster) -> None:
    addresses = [address for _, address in cluster.web]
    cluster.sync(
        web(*addresses, session_affinity="ClientIP", session_affinity_config=SessionAffinityConfig())
    )
    assert len({ask(cluster.client, VIP, 80)[0] for _ in range(20)}) == 1


def test_syncing_again_writes_nothing_and_clean_up_leaves_nothing(cluster: Cluster) -> None:
    before = cluster.saved()
    addresses = [address for _, address in cluster.web]
    service = web(
        *addresses,
        node_port=NODE_PORT,
        type="NodePort",
        session_affinity="ClientIP",
        external_traffic_policy="Local",
    )
    assert cluster.sync(service).transactions > 0
    rules = cluster.saved()
    cluster.back_end.forget()
    again = cluster.sync(service)
    assert again.full and again.transactions == 0, "planned text must equal what iptables-save prints"
    assert cluster.saved() == rules
    cluster.on_node(cluster.back_end.clean_up)
    assert cluster.saved() == before


def test_a_flush_by_somebody_else_is_noticed_and_repaired(cluster: Cluster) -> None:
    service = web(cluster.web[0][1])
    cluster.sync(service)
    assert cluster.on_node(cluster.back_end.drifted) == ""
    for command in (["-F"], ["-t", "nat", "-F"], ["-D", "FORWARD", "1"]):
        cluster.node.run(lambda command=command: processes.run(["iptables", *command]))
        assert cluster.on_node(cluster.back_end.drifted) != ""
        cluster.back_end.forget()
        cluster.sync(service)
        assert cluster.on_node(cluster.back_end.drifted) == ""
        assert ask(cluster.client, VIP, 80)[0] == cluster.web[0][1]


def test_udp_clients_move_when_their_endpoint_goes(cluster: Cluster) -> None:
    first, second = cluster.web[0][1], cluster.web[1][1]

    def udp(*addresses: str) -> VirtualService:
        return web(*addresses, protocol="UDP")

    with netns.open_socket(cluster.client, socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(60)

        def who() -> str:
            client.sendto(b"?", (VIP, 80))
            return client.recv(100).decode().split()[0]

        service = udp(first)
        cluster.sync(service)
        assert who() == first
        service = udp(second)
        cluster.sync(service)
        assert who() == first, "the kernel keeps a known flow where it is"
        assert cluster.on_node(lambda: conntrack.reconcile(service.ports)) == 1
        assert who() == second
        assert cluster.on_node(lambda: conntrack.reconcile(service.ports)) == 0


class Collection:
    """A live collection that a test changes by hand."""

    def __init__(self) -> None:
        self.synced = asyncio.Event()
        self.synced.set()
        self.change: Callable[[Any, Any], None] = lambda old, new: None

    def subscribe(self, on_change: Callable[[Any, Any], None]) -> None:
        self.change = on_change


def test_one_change_is_live_in_tens_of_milliseconds(cluster: Cluster) -> None:
    first, second = cluster.web[0][1], cluster.web[1][1]

    async def main() -> list[float]:
        services, slices = Collection(), Collection()
        proxy = ServiceProxy(
            services=services,  # type: ignore[arg-type]
            slices=slices,  # type: ignore[arg-type]
            node=NodeFacts(name="node1"),
            back_end=IptablesBackEnd(Settings()),
            pace=Pace(interval=0.1),
        )
        running = asyncio.create_task(proxy.run())
        await asyncio.wait_for(proxy.synced.wait(), 10)
        service, old = service_objects(first)
        services.change(None, service)
        slices.change(None, old)
        await asyncio.wait_for(proxy.synced.wait(), 10)
        latencies = []
        for address in (second, first) * 3:
            await asyncio.sleep(0.15)
            _, new = service_objects(address)
            began = time.monotonic()
            slices.change(old, new)
            await asyncio.wait_for(proxy.synced.wait(), 10)
            latencies.append(time.monotonic() - began)
            assert (await asyncio.to_thread(ask, cluster.client, VIP, 80))[0] == address
            old = new
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return latencies

    latencies = cluster.node.run(lambda: asyncio.run(main()))
    assert sorted(latencies)[len(latencies) // 2] < 0.1, latencies
