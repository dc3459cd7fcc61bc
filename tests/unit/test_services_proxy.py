"""The component under virtual time: when it syncs, what it passes on, how it recovers; and its two
neighbours."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import msgspec
import pytest

from agent.api.structs import (
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
)
from agent.server import exposition
from agent.services import conntrack
from agent.services.health import Health, HealthPorts, answer
from agent.services.iptables import Synced
from agent.services.picture import SERVICE_NAME_LABEL, NodeFacts, VirtualPort, VirtualService
from agent.services.proxy import Pace, ServiceProxy
from host.clocks import FakeClock, settle
from host.errors import HostError


class Collection:
    def __init__(self, *objects: Any) -> None:
        self.synced = asyncio.Event()
        self.objects = objects
        self.change: Callable[[Any, Any], None] = lambda old, new: None

    def subscribe(self, on_change: Callable[[Any, Any], None]) -> None:
        self.change = on_change
        for one in self.objects:
            on_change(None, one)


class FakeBackEnd:
    """Notes every sync with its time; a full one first and after failures."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.syncs: list[tuple[float, list[str], dict[str, VirtualService]]] = []
        self.failures = 0
        self.drift = ""
        self.forgotten = 0

    async def sync(self, services: Mapping[str, VirtualService], changed: Iterable[str]) -> Synced:
        self.syncs.append((self.clock.monotonic(), sorted(changed), dict(services)))
        if self.failures:
            self.failures -= 1
            raise HostError(errno.EIO, "iptables-restore")
        return Synced(False, 1, 1, 0.0)

    async def drifted(self) -> str:
        drift, self.drift = self.drift, ""
        return drift

    def forget(self) -> None:
        self.forgotten += 1


class Node:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.services, self.slices = Collection(), Collection()
        self.back_end = FakeBackEnd(self.clock)
        self.cleaned: list[list[str]] = []
        self.proxy = ServiceProxy(
            services=self.services,  # type: ignore[arg-type]
            slices=self.slices,  # type: ignore[arg-type]
            node=NodeFacts(name="n1"),
            back_end=self.back_end,
            clock=self.clock,
            pace=Pace(interval=0.1, check=15.0, retry=1.0),
            clean_flows=self.clean,
        )

    async def clean(self, ports: list[VirtualPort]) -> None:
        self.cleaned.append([port.name for port in ports])

    def times(self) -> list[float]:
        return [round(at, 3) for at, _, _ in self.back_end.syncs]


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    made = Node()
    task = asyncio.create_task(made.proxy.run())
    await settle()
    yield made
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def begin(node: Node) -> None:
    node.services.synced.set()
    node.slices.synced.set()
    await node.clock.advance(0)


def service(name: str, protocol: str = "TCP", **spec: Any) -> Service:
    return Service(
        metadata=ObjectMeta(name=name, namespace="ns"),
        spec=ServiceSpec(cluster_ip="10.96.0.1", ports=(ServicePort(port=80, protocol=protocol),), **spec),
    )


def one_slice(name: str, of: str, *addresses: str, protocol: str = "TCP") -> EndpointSlice:
    return EndpointSlice(
        metadata=ObjectMeta(name=name, namespace="ns", labels={SERVICE_NAME_LABEL: of}),
        address_type="IPv4",
        endpoints=tuple(Endpoint(addresses=(address,)) for address in addresses),
        ports=(EndpointPort(name="", port=8080, protocol=protocol),),
    )


async def test_nothing_is_written_before_both_lists_are_complete(node: Node) -> None:
    node.services.synced.set()
    await node.clock.advance(60)
    assert node.back_end.syncs == []
    node.slices.synced.set()
    await node.clock.advance(0)
    assert len(node.back_end.syncs) == 1
    assert node.proxy.synced.is_set()


async def test_a_single_change_is_written_at_once(node: Node) -> None:
    await begin(node)
    await node.clock.advance(1)
    node.services.change(None, service("a"))
    assert not node.proxy.synced.is_set()
    await node.clock.advance(0)
    assert node.times() == [0, 1]
    assert node.back_end.syncs[1][1] == ["ns/a"]
    assert node.proxy.synced.is_set()


async def test_a_burst_is_two_syncs(node: Node) -> None:
    await begin(node)
    await node.clock.advance(1)
    for number in range(50):
        node.services.change(None, service(f"s{number}"))
        await node.clock.advance(0.001)
    await node.clock.advance(1)
    assert node.times() == [0, 1, 1.1]
    assert sum(len(changed) for _, changed, _ in node.back_end.syncs) == 50


async def test_slices_of_a_service_come_together_and_go(node: Node) -> None:
    await begin(node)
    node.services.change(None, service("a"))
    first, second = one_slice("1", "a", "10.1.0.1"), one_slice("2", "a", "10.1.0.2")
    node.slices.change(None, first)
    node.slices.change(None, second)
    await node.clock.advance(1)
    (port,) = node.back_end.syncs[-1][2]["ns/a"].ports
    assert [one.ip for one in port.cluster] == ["10.1.0.1", "10.1.0.2"]
    node.slices.change(first, None)
    node.slices.change(second, one_slice("2", "b", "10.1.0.2"))
    await node.clock.advance(1)
    (port,) = node.back_end.syncs[-1][2]["ns/a"].ports
    assert port.cluster == ()
    node.services.change(service("a"), None)
    await node.clock.advance(1)
    assert node.back_end.syncs[-1][2] == {}


async def test_changes_that_mean_nothing_are_not_passed_on(node: Node) -> None:
    await begin(node)
    made = service("a")
    node.services.change(None, made)
    await node.clock.advance(1)
    node.services.change(made, service("a", selector={"x": "y"}))
    await node.clock.advance(1)
    assert node.back_end.syncs[-1][1] == []


async def test_failures_are_retried_ever_more_slowly(node: Node) -> None:
    await begin(node)
    node.back_end.failures = 3
    await node.clock.advance(10)
    node.services.change(None, service("a"))
    await node.clock.advance(60)
    assert node.times() == [0, 10, 11, 13, 17]
    assert node.proxy.synced.is_set()


async def test_drift_leads_to_a_full_sync(node: Node) -> None:
    await begin(node)
    await node.clock.advance(14)
    node.back_end.drift = "flushed"
    await node.clock.advance(2)
    assert node.back_end.forgotten == 1
    assert node.times() == [0, 15]


async def test_syncs_are_counted_under_kube_proxys_names(node: Node) -> None:
    await begin(node)
    node.back_end.failures = 1
    changed = one_slice("1", "a", "10.1.0.1")
    trigger = {"endpoints.kubernetes.io/last-change-trigger-time": "2023-11-14T22:13:20.5Z"}
    changed = msgspec.structs.replace(
        changed, metadata=msgspec.structs.replace(changed.metadata, annotations=trigger)
    )
    await node.clock.advance(1)  # half a second after the change was made
    node.services.change(None, service("a"))
    node.slices.change(None, changed)
    await node.clock.advance(2)
    shown = exposition.values(node.proxy.families())
    ip = '{ip_family="IPv4"}'
    assert shown[f"kubeproxy_sync_proxy_rules_duration_seconds_count{ip}"] == 2
    assert shown[f"kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip}"] == 1
    assert shown["kubeproxy_sync_proxy_rules_service_changes_total"] == 1
    assert shown["kubeproxy_sync_proxy_rules_endpoint_changes_pending"] == 0
    # The failed sync's change is measured by the one that wrote it, a second later.
    assert shown[f"kubeproxy_network_programming_duration_seconds_sum{ip}"] == 1.5
    assert shown['kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="1"}'] == 0
    assert shown['kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="2"}'] == 1


async def test_another_zone_draws_everything_again(node: Node) -> None:
    await begin(node)
    node.services.change(None, service("a", internal_traffic_policy="Local"))
    node.slices.change(None, one_slice("1", "a", "10.1.0.1"))
    await node.clock.advance(1)
    node.proxy.set_node(NodeFacts(name="n1", zone="b"))
    await node.clock.advance(1)
    assert len(node.back_end.syncs) == 3


async def test_udp_changes_clean_flows_and_others_do_not(node: Node) -> None:
    await begin(node)
    node.services.change(None, service("t"))
    await node.clock.advance(1)
    assert node.cleaned == []
    node.services.change(None, service("u", protocol="UDP"))
    await node.clock.advance(1)
    assert node.cleaned == [["ns/t", "ns/u"]]


TO_VIP = "udp 17 29 src=10.1.0.9 dst=10.96.0.10"
LISTING = f"""\
{TO_VIP} sport=4000 dport=53 src=10.1.0.1 dst=10.1.0.9 sport=5353 dport=4000 mark=0 use=1
{TO_VIP} sport=4001 dport=53 [UNREPLIED] src=10.1.0.2 dst=10.1.0.9 sport=5353 dport=4001
{TO_VIP} sport=4002 dport=53 [UNREPLIED] src=10.96.0.10 dst=10.1.0.9 sport=53 dport=4002
udp 17 29 src=10.1.0.9 dst=8.8.8.8 sport=4003 dport=53 src=8.8.8.8 dst=10.1.0.9 sport=53 dport=4003
udp 17 9 src=9.9.9.9 dst=192.168.0.1 sport=4004 dport=30053 src=10.1.0.2 dst=10.1.0.1 sport=5353 dport=4004
conntrack v1.4.7 (conntrack-tools): 5 flow entries have been shown.
"""


def dns(*serving: str, protocol: str = "udp") -> VirtualPort:
    return VirtualPort(
        name="ns/dns",
        protocol=protocol,
        cluster_ip="10.96.0.10",
        port=53,
        node_port=30053,
        serving=frozenset(serving),
    )


@pytest.mark.parametrize(
    ("port", "stale_ports"),
    [
        (dns("10.1.0.1:5353"), [4001, 4002, 4004]),
        (dns("10.1.0.1:5353", "10.1.0.2:5353"), [4002]),
        (dns(), [4000, 4001, 4002]),
        (dns(protocol="tcp"), []),
    ],
)
def test_stale_flows(port: VirtualPort, stale_ports: list[int]) -> None:
    flows = conntrack.stale(conntrack.parse(LISTING), [port])
    assert [flow.source_port for flow in flows] == stale_ports


def test_health_answers() -> None:
    head, _, body = answer(Health("ns/web", 2)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"X-Load-Balancing-Endpoint-Weight: 2" in head
    assert json.loads(body) == {
        "service": {"namespace": "ns", "name": "web"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }
    assert answer(Health("ns/web", 0)).startswith(b"HTTP/1.1 503 ")


async def test_health_ports_open_answer_and_close() -> None:
    taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    number = taken.sockets[0].getsockname()[1]
    ports = HealthPorts(host="127.0.0.1")
    await ports.set({number: Health("ns/web", 1)})
    taken.close()
    await taken.wait_closed()
    await ports.set({number: Health("ns/web", 1)})

    async def status() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", number)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        line = await reader.readline()
        writer.close()
        return line

    assert b"200" in await status()
    await ports.set({number: Health("ns/web", 0)})
    assert b"503" in await status()
    await ports.close()
    with pytest.raises(ConnectionRefusedError):
        await status()


async def test_a_pod_is_routed_to_until_the_kernel_has_rules_without_it(node: Node) -> None:
    told: list[bool] = []
    node.proxy.on_sync = lambda: told.append(node.proxy.routes_to(["10.244.1.5"]))
    node.services.objects = (service("web"),)
    before = one_slice("web-1", "web", "10.244.1.5", "10.244.1.6")
    node.slices.objects = (before,)
    await begin(node)
    assert told == [True] and not node.proxy.routes_to(["10.244.1.7"])
    ending = EndpointConditions(ready=False, serving=True, terminating=True)
    gone = msgspec.structs.replace(before.endpoints[0], conditions=ending)
    node.slices.change(before, msgspec.structs.replace(before, endpoints=(gone, before.endpoints[1])))
    assert node.proxy.routes_to(["10.244.1.5"]), "the rules are still the old ones"
    await node.clock.advance(1)
    assert told == [True, False]


async def test_the_last_endpoint_of_a_service_is_not_held_for_its_fallback(node: Node) -> None:
    node.services.objects = (service("web"),)
    alone = one_slice("web-1", "web", "10.244.1.5")
    ending = EndpointConditions(ready=False, serving=True, terminating=True)
    gone = msgspec.structs.replace(alone.endpoints[0], conditions=ending)
    node.slices.objects = (msgspec.structs.replace(alone, endpoints=(gone,)),)
    await begin(node)
    assert not node.proxy.routes_to(["10.244.1.5"])
