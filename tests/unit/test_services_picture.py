"""From API objects to virtual ports: what counts, what is ignored, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from agent.api.structs import (
    ClientIPConfig,
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    ForZone,
    LoadBalancerIngress,
    LoadBalancerStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    SessionAffinityConfig,
)
from agent.services.picture import NodeFacts, VirtualPort, VirtualService, draw

NODE = NodeFacts(name="n1", zone="a")


def service(
    *ports: ServicePort, labels: dict[str, str] | None = None, status: Any = None, **spec: Any
) -> Service:
    facts = {"cluster_ip": "10.96.0.10", "cluster_ips": ("10.96.0.10", "fd00::a"), **spec}
    return Service(
        metadata=ObjectMeta(name="web", namespace="ns", labels=labels or {}),
        spec=ServiceSpec(ports=ports or (ServicePort(name="http", port=80),), **facts),
        status=status or ServiceStatus(),
    )


def endpoint(address: str, *, node: str | None = "n1", zone: str = "", **conditions: bool) -> Endpoint:
    return Endpoint(
        addresses=(address,),
        conditions=EndpointConditions(**conditions),
        node_name=node,
        hints=EndpointHints(for_zones=(ForZone(name=zone),)) if zone else None,
    )


def one_slice(
    *endpoints: Endpoint, name: str | None = "http", port: int | None = 8080, **facts: Any
) -> EndpointSlice:
    protocol = facts.pop("protocol", "TCP")
    return EndpointSlice(
        address_type=facts.pop("address_type", "IPv4"),
        endpoints=endpoints,
        ports=(EndpointPort(name=name, port=port, protocol=protocol),),
    )


def picture(made: Service | None, *slices: EndpointSlice, node: NodeFacts = NODE) -> VirtualService:
    return draw(made, slices, key="ns/web", node=node)


def only(drawn: VirtualService) -> VirtualPort:
    (port,) = drawn.ports
    return port


@pytest.mark.parametrize(
    "made",
    [
        None,
        service(cluster_ip="None", cluster_ips=("None",)),
        service(cluster_ip="", cluster_ips=()),
        service(type="ExternalName", external_name="example.com"),
        service(labels={"service.kubernetes.io/service-proxy-name": "other"}),
        service(labels={"service.kubernetes.io/headless": ""}),
        service(cluster_ip="fd00::a", cluster_ips=("fd00::a",)),
    ],
)
def test_nothing_to_do(made: Service | None) -> None:
    assert picture(made, one_slice(endpoint("10.1.0.1"))) == VirtualService("ns/web")


def test_the_plain_case() -> None:
    port = only(picture(service(), one_slice(endpoint("10.1.0.2"), endpoint("10.1.0.1", node="n2"))))
    assert (port.name, port.protocol, port.cluster_ip, port.port) == ("ns/web:http", "tcp", "10.96.0.10", 80)
    assert [one.address for one in port.cluster] == ["10.1.0.1:8080", "10.1.0.2:8080"]
    assert [one.local for one in port.cluster] == [False, True]
    assert port.local == ()
    assert port.serving == {"10.1.0.1:8080", "10.1.0.2:8080"}


def test_a_port_without_a_name() -> None:
    made = service(ServicePort(port=80))
    assert only(picture(made, one_slice(endpoint("10.1.0.1"), name=""))).name == "ns/web"
    assert only(picture(made, one_slice(endpoint("10.1.0.1"), name=None))).has_endpoints


def test_the_other_family() -> None:
    six = NodeFacts(name="n1", family=6)
    slices = (one_slice(endpoint("10.1.0.1")), one_slice(endpoint("FD00:1::0:1"), address_type="IPv6"))
    port = only(picture(service(), *slices, node=six))
    assert port.cluster_ip == "fd00::a"
    assert [one.address for one in port.cluster] == ["[fd00:1::1]:8080"]


def test_ports_are_matched_by_name_and_protocol() -> None:
    made = service(ServicePort(name="a", port=1), ServicePort(name="b", port=2, protocol="UDP"))
    slices = (
        one_slice(endpoint("10.1.0.1"), name="a", port=11),
        one_slice(endpoint("10.1.0.2"), name="a", port=12),
        one_slice(endpoint("10.1.0.1"), name="b", port=22, protocol="UDP"),
        one_slice(endpoint("10.1.0.3"), name="b", port=99, protocol="TCP"),
    )
    first, second = picture(made, *slices).ports
    assert [one.address for one in first.cluster] == ["10.1.0.1:11", "10.1.0.2:12"]
    assert [one.address for one in second.cluster] == ["10.1.0.1:22"]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0", "example.com", "fd00::1", ""]
)
def test_addresses_that_must_not_be_endpoints(address: str) -> None:
    assert not only(picture(service(), one_slice(endpoint(address)))).has_endpoints


@pytest.mark.parametrize("port", [None, 0, 65536, -1])
def test_endpoint_ports_that_are_none(port: int | None) -> None:
    assert not only(picture(service(), one_slice(endpoint("10.1.0.1"), port=port))).has_endpoints


def test_empty_slices_as_the_api_writes_them() -> None:
    assert not only(
        picture(service(), EndpointSlice(address_type="IPv4", endpoints=None, ports=None))
    ).has_endpoints


def test_an_address_in_two_slices_counts_once_and_the_living_one_wins() -> None:
    leaving = endpoint("10.1.0.1", ready=False, serving=True, terminating=True)
    alive = endpoint("10.1.0.1")
    for slices in ((one_slice(leaving), one_slice(alive)), (one_slice(alive), one_slice(leaving))):
        (chosen,) = only(picture(service(), *slices)).cluster
        assert chosen.ready


def test_conditions() -> None:
    slices = one_slice(
        endpoint("10.1.0.1", ready=True),
        endpoint("10.1.0.2", ready=False, serving=True, terminating=True),
        endpoint("10.1.0.3", ready=False, serving=False),
    )
    port = only(picture(service(), slices))
    assert [one.ip for one in port.cluster] == ["10.1.0.1"]
    assert port.serving == {"10.1.0.1:8080", "10.1.0.2:8080"}


def test_zone_hints() -> None:
    slices = one_slice(endpoint("10.1.0.1", zone="a"), endpoint("10.1.0.2", zone="b"))
    assert [one.ip for one in only(picture(service(), slices)).cluster] == ["10.1.0.1"]


def test_affinity() -> None:
    def seconds(**spec: Any) -> int:
        return only(picture(service(**spec))).affinity_seconds

    assert seconds() == 0
    assert seconds(session_affinity="ClientIP") == 10800
    config = SessionAffinityConfig(client_ip=ClientIPConfig(timeout_seconds=60))
    assert seconds(session_affinity="ClientIP", session_affinity_config=config) == 60


def test_load_balancers() -> None:
    ingress = (
        LoadBalancerIngress(ip="198.51.100.1"),
        LoadBalancerIngress(ip="198.51.100.2", ip_mode="Proxy"),
        LoadBalancerIngress(ip="198.51.100.3", ip_mode="VIP"),
        LoadBalancerIngress(hostname="lb.example.com"),
        LoadBalancerIngress(ip="2001:db8::1"),
    )
    made = service(
        type="LoadBalancer",
        external_traffic_policy="Local",
        health_check_node_port=32000,
        load_balancer_source_ranges=(" 10.0.0.0/8", "2001:db8::/32", "junk"),
        status=ServiceStatus(load_balancer=LoadBalancerStatus(ingress=ingress)),
    )
    slices = one_slice(endpoint("10.1.0.1"), endpoint("10.1.0.2", node="n2"))
    drawn = picture(made, slices)
    port = only(drawn)
    assert port.load_balancer_ips == ("198.51.100.1", "198.51.100.3")
    assert port.source_ranges == ("10.0.0.0/8",)
    assert (drawn.health_check_port, drawn.local_ready) == (32000, 1)
    assert port.external_local and [one.ip for one in port.local] == ["10.1.0.1"]


def test_everybody_as_source_range_means_no_range() -> None:
    made = service(load_balancer_source_ranges=("10.0.0.0/8", "0.0.0.0/0"))
    assert only(picture(made)).source_ranges == ()


def test_external_ips_are_off_by_default() -> None:
    made = service(external_ips=("80.11.12.10",))
    assert only(picture(made)).external_ips == ()
    allowed = NodeFacts(name="n1", external_ips=True)
    assert only(picture(made, node=allowed)).external_ips == ("80.11.12.10",)


def test_traffic_policy_local_means_nothing_without_an_external_address() -> None:
    port = only(picture(service(external_traffic_policy="Local"), one_slice(endpoint("10.1.0.1"))))
    assert not port.external_local and not port.uses_local
