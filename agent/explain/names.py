"""Names and addresses of the cluster as this node's agent knows them, for `nodelet net trace`. Pure.

Nothing is watched for it: Services, EndpointSlices and Nodes are known for the rules and the overlay, other
nodes' pods while a NetworkPolicy exists. So a pod of another node is known when it stands behind a Service,
or when there are policies.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping

from agent.api.structs import EndpointSlice, Node, Service
from agent.explain.documents import Known
from agent.overlay.peers import WORDS, pod_ranges
from agent.policy.objects import PodFact
from host.errors import InputError
from host.rtnl import IPAddress


def lookup(
    word: str,
    *,
    services: Iterable[Service],
    slices: Iterable[EndpointSlice],
    pods: Iterable[PodFact],
    nodes: Mapping[str, Node],
) -> list[Known]:
    """What a word names: an address, a name, or "namespace/name". Pods are told once for each address."""
    found = [*_services(services), *_endpoints(slices), *_pods(pods)]
    try:
        address = ipaddress.ip_address(word)
    except ValueError:
        namespace, _, name = word.rpartition("/")
        chosen = [one for one in found if one.name == name and namespace in ("", one.namespace)]
    else:
        chosen = [one for one in found if one.ip == str(address)]
        if not chosen:
            chosen = [Known(kind="address", ip=str(address))]
    unique = dict.fromkeys(_with_node(one, nodes) for one in chosen)
    return [one for one in unique if one.kind != "address" or one.node]


def _services(services: Iterable[Service]) -> Iterator[Known]:
    for service in services:
        ips = service.spec.cluster_ips or (service.spec.cluster_ip,)
        for ip in (ip for ip in ips if _is_address(ip)):
            for port in service.spec.ports:
                yield Known(
                    kind="service",
                    namespace=service.metadata.namespace,
                    name=service.metadata.name,
                    ip=ip,
                    protocol=port.protocol.lower(),
                    port=port.port,
                    port_name=port.name or "",
                )


def _endpoints(slices: Iterable[EndpointSlice]) -> Iterator[Known]:
    for one in slices:
        for endpoint in one.endpoints or ():
            target = endpoint.target_ref
            if target is not None and target.kind == "Pod":
                for ip in endpoint.addresses:
                    yield Known(kind="pod", namespace=target.namespace, name=target.name, ip=ip)


def _pods(pods: Iterable[PodFact]) -> Iterator[Known]:
    for pod in pods:
        for ip in pod.ips:
            yield Known(kind="pod", namespace=pod.namespace, name=pod.name, ip=ip)


def _with_node(known: Known, nodes: Mapping[str, Node]) -> Known:
    """With the node whose pod range has the address, or whose own address it is."""
    if known.kind == "service":
        return known
    address = ipaddress.ip_address(known.ip)
    for name, node in nodes.items():
        host = _host(node, address.version)
        try:
            inside = any(address in net for net in pod_ranges(node))
        except InputError:
            continue  # the overlay says what is wrong with that Node
        if inside or host == address:
            return Known(
                kind=known.kind,
                namespace=known.namespace,
                name=known.name,
                ip=known.ip,
                node=name,
                host=str(host or ""),
            )
    return known


def _host(node: Node, version: int) -> IPAddress | None:
    """Where pods of that IP version are reached: the address its overlay tells, or the Node's own."""
    internal = [entry.address for entry in node.status.addresses if entry.type == "InternalIP"]
    for text in (node.metadata.annotations.get(WORDS[version].host, ""), *internal):
        if _is_address(text) and (address := ipaddress.ip_address(text)).version == version:
            return address
    return None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
