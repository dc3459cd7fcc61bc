"""Facts about virtual addresses, from Service and EndpointSlice objects: the picture every back end draws
from.

Everything here is pure. What is ignored: headless Services and ExternalName (nothing to do for a proxy),
addresses of the other family, hostname load balancers, endpoints without a port number, and endpoint
addresses that would hijack the node (loopback, link-local, multicast; CVE-2021-25737).

Source: Kubernetes API, core/v1 Service and discovery/v1 EndpointSlice; KEP-1669 (terminating endpoints),
KEP-2086 (internalTrafficPolicy), KEP-1880; KEP-3015 (PreferSameZone, PreferSameNode).
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from host.rules.iptables import Family

if TYPE_CHECKING:
    from agent.api.structs import Endpoint as ApiEndpoint
    from agent.api.structs import EndpointSlice, Service, ServicePort

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
_PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
_HEADLESS_LABEL = "service.kubernetes.io/headless"
_DEFAULT_AFFINITY_SECONDS = 10800


@dataclass(frozen=True)
class NodeFacts:
    """What the picture needs to know of this node.

    Attributes:
        name: the Node object's name; endpoints on it are local.
        zone: its topology.kubernetes.io/zone, "" if none.
        family: the IP family to draw.
        external_ips: honour Service.spec.externalIPs (off by default: CVE-2020-8554).
    """

    name: str
    zone: str = ""
    family: Family = 4
    external_ips: bool = False


@dataclass(frozen=True)
class Endpoint:
    """One backend address of a virtual port."""

    ip: str
    port: int
    local: bool = False
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    zones: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()

    @property
    def address(self) -> str:
        """ip:port, with brackets around an IPv6 address."""
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"

    @property
    def leaving(self) -> bool:
        """Terminating, but still able to answer."""
        return self.serving and self.terminating


@dataclass(frozen=True)
class VirtualPort:
    """One port of one Service with the endpoints chosen for this node.

    Attributes:
        name: "namespace/service:port", or "namespace/service" when the port has no name.
        protocol: "tcp", "udp" or "sctp".
        cluster_ip, port: the virtual address.
        node_port: 0 for none.
        external_ips, load_balancer_ips: further virtual addresses.
        source_ranges: who may use the load balancer addresses; () means everybody.
        affinity_seconds: how long a client stays with its endpoint; 0 means no affinity.
        internal_local, external_local: the traffic policy for that kind of traffic is Local.
        cluster: endpoints for policy Cluster.
        local: endpoints for policy Local.
        has_endpoints: whether anybody anywhere could serve.
        serving: addresses of all serving endpoints, whatever the policies.
    """

    name: str
    protocol: str
    cluster_ip: str
    port: int
    node_port: int = 0
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    affinity_seconds: int = 0
    internal_local: bool = False
    external_local: bool = False
    cluster: tuple[Endpoint, ...] = ()
    local: tuple[Endpoint, ...] = ()
    has_endpoints: bool = False
    serving: frozenset[str] = frozenset()

    @property
    def external(self) -> bool:
        """Reachable by something other than its cluster IP."""
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)

    @property
    def uses_cluster(self) -> bool:
        """Whether any traffic is ever sent by policy Cluster (local clients of external addresses always
        are).
        """
        return not self.internal_local or self.external

    @property
    def uses_local(self) -> bool:
        """Whether any traffic is ever sent by policy Local."""
        return self.internal_local or (self.external_local and self.external)

    @property
    def reachable(self) -> tuple[Endpoint, ...]:
        """Every endpoint that some rule leads to, each once."""
        both = (*self.cluster, *self.local)
        return tuple({endpoint.address: endpoint for endpoint in both}.values())


@dataclass(frozen=True)
class VirtualService:
    """All virtual ports of one Service, and its health check node port.

    Attributes:
        key: "namespace/name".
        ports: () for a Service that a proxy has nothing to do with.
        health_check_port: where to answer how many local endpoints there are; 0 for none.
        local_ready: number of ready endpoints on this node, each pod counted once.
    """

    key: str
    ports: tuple[VirtualPort, ...] = ()
    health_check_port: int = 0
    local_ready: int = 0


def draw(
    service: Service | None, slices: Iterable[EndpointSlice], *, key: str, node: NodeFacts
) -> VirtualService:
    """The picture of one Service.

    Args:
        service: None when it does not exist (any more).
        slices: its EndpointSlices.
        key: "namespace/name".
        node: this node.
    """
    if service is None or not is_proxied(service):
        return VirtualService(key)
    cluster_ip = _own_family([*service.spec.cluster_ips, service.spec.cluster_ip], node.family)
    if not cluster_ip:
        return VirtualService(key)
    endpoints = collect_endpoints(slices, node)
    ports = []
    for port in service.spec.ports:
        candidates = endpoints.get((port.name, port.protocol), ())
        ports.append(
            _draw_port(service, port, key=key, cluster_ip=cluster_ip[0], node=node, found=candidates)
        )
    health = service.spec.health_check_node_port if _needs_health_check(service) else 0
    ready = {one.ip for found in endpoints.values() for one in found if one.local and one.ready}
    return VirtualService(key, tuple(ports), health, len(ready))


def is_proxied(service: Service) -> bool:
    """Whether a proxy has anything to do for it: not headless, not ExternalName, not for another proxy."""
    spec, labels = service.spec, service.metadata.labels
    if spec.type == "ExternalName" or spec.cluster_ip in ("", "None"):
        return False
    return _PROXY_NAME_LABEL not in labels and _HEADLESS_LABEL not in labels


def _needs_health_check(service: Service) -> bool:
    spec = service.spec
    return spec.type == "LoadBalancer" and spec.external_traffic_policy == "Local"


def _draw_port(
    service: Service,
    port: ServicePort,
    *,
    key: str,
    cluster_ip: str,
    node: NodeFacts,
    found: tuple[Endpoint, ...],
) -> VirtualPort:
    spec = service.spec
    affinity = 0
    if spec.session_affinity == "ClientIP":
        config = spec.session_affinity_config
        seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
        affinity = seconds or _DEFAULT_AFFINITY_SECONDS
    vips = [
        ingress.ip
        for ingress in service.status.load_balancer.ingress
        if ingress.ip and ingress.ip_mode in (None, "VIP")
    ]
    ranges = _own_ranges(spec.load_balancer_source_ranges, node.family)
    external_types = ("NodePort", "LoadBalancer")
    facts = VirtualPort(
        name=f"{key}:{port.name}" if port.name else key,
        protocol=port.protocol.lower(),
        cluster_ip=cluster_ip,
        port=port.port,
        node_port=port.node_port,
        external_ips=tuple(_own_family(spec.external_ips, node.family)) if node.external_ips else (),
        load_balancer_ips=tuple(_own_family(vips, node.family)),
        source_ranges=ranges,
        affinity_seconds=affinity,
        internal_local=spec.internal_traffic_policy == "Local",
        external_local=spec.external_traffic_policy == "Local"
        and (spec.type in external_types or bool(spec.external_ips)),
        serving=frozenset(endpoint.address for endpoint in found if endpoint.serving),
    )
    return choose(facts, found, node)


def choose(port: VirtualPort, found: tuple[Endpoint, ...], node: NodeFacts) -> VirtualPort:
    """Pick the endpoints for both traffic policies.

    Ready ones; if there are none, those that are leaving but still serve, so that a rolling update of the
    last endpoint loses nothing. Topology hints narrow policy Cluster only when every ready endpoint has one.
    """
    ready = tuple(endpoint for endpoint in found if endpoint.ready)
    leaving = tuple(endpoint for endpoint in found if endpoint.leaving and not endpoint.ready)
    cluster: tuple[Endpoint, ...] = ()
    local: tuple[Endpoint, ...] = ()
    if port.uses_cluster:
        cluster = nearest(ready, node) or leaving
    if port.uses_local:
        local = tuple(one for one in ready if one.local) or tuple(one for one in leaving if one.local)
    has_endpoints = bool(ready or leaving) if port.uses_local else bool(cluster)
    return replace(port, cluster=cluster, local=local, has_endpoints=has_endpoints)


def nearest(ready: tuple[Endpoint, ...], node: NodeFacts) -> tuple[Endpoint, ...]:
    """The ready endpoints hinted for this node, else for its zone, else all of them."""
    if ready and all(endpoint.nodes for endpoint in ready):
        hinted = tuple(endpoint for endpoint in ready if node.name in endpoint.nodes)
        if hinted:
            return hinted
    if ready and node.zone and all(endpoint.zones for endpoint in ready):
        hinted = tuple(endpoint for endpoint in ready if node.zone in endpoint.zones)
        if hinted:
            return hinted
    return ready


def collect_endpoints(
    slices: Iterable[EndpointSlice], node: NodeFacts
) -> Mapping[tuple[str, str], tuple[Endpoint, ...]]:
    """(port name, protocol) → endpoints in order of address.

    The same address in two slices: the one that is not terminating wins, because it may be another pod that
    was given the address of one that is leaving.
    """
    wanted = "IPv6" if node.family == 6 else "IPv4"
    found: dict[tuple[str, str], dict[str, Endpoint]] = {}
    for one in slices:
        if one.address_type != wanted:
            continue
        for port in one.ports or ():
            if port.port is None or not 0 < port.port < 65536:
                continue
            by_address = found.setdefault((port.name or "", port.protocol or "TCP"), {})
            for entry in one.endpoints or ():
                endpoint = _endpoint(entry, port.port, node)
                if endpoint is not None and (endpoint.address not in by_address or not endpoint.terminating):
                    by_address[endpoint.address] = endpoint
    return {
        key: tuple(by_address[address] for address in sorted(by_address)) for key, by_address in found.items()
    }


def _endpoint(entry: ApiEndpoint, port: int, node: NodeFacts) -> Endpoint | None:
    ip = _usable(entry.addresses[0], node.family) if entry.addresses else ""
    if not ip:
        return None
    conditions, hints = entry.conditions, entry.hints
    return Endpoint(
        ip=ip,
        port=port,
        local=bool(entry.node_name) and entry.node_name == node.name,
        ready=conditions.ready is not False,
        serving=conditions.serving is not False,
        terminating=conditions.terminating is True,
        zones=frozenset(zone.name for zone in hints.for_zones) if hints else frozenset(),
        nodes=frozenset(one.name for one in hints.for_nodes) if hints else frozenset(),
    )


@functools.lru_cache(maxsize=65536)
def _usable(text: str, family: Family) -> str:
    """The address in canonical form, or "" when it is of the other family or must not be an endpoint."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    if address.version != family:
        return ""
    bad = address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified
    return "" if bad else str(address)


def _own_family(texts: Iterable[str], family: Family) -> list[str]:
    """The addresses of one family in canonical form, each once, in order; what is no address is left out."""
    found = []
    for text in texts:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue
        if address.version == family:
            found.append(str(address))
    return list(dict.fromkeys(found))


def _own_ranges(texts: Iterable[str], family: Family) -> tuple[str, ...]:
    """Source ranges of one family; () when one of them is everybody."""
    ranges = []
    for text in texts:
        try:
            network = ipaddress.ip_network(text.strip(), strict=False)
        except ValueError:
            continue
        if network.version == family:
            if network.prefixlen == 0:
                return ()
            ranges.append(str(network))
    return tuple(ranges)
