"""A packet's way through this node's tables, hop by hop, up to the one that fails, and the way of its answer.

    source → service rules → each endpoint: policies → forwarding → route ─┬→ bridge: neighbour, pod's port
                                                                           └→ tunnel: neighbour, FDB, underlay
    reply: the same from there to the source

Pure: judges a `Tables` value. What another node does with the packet is asked there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from agent.explain import netservices
from agent.explain.nettables import PodPort, Tables
from agent.policy import verdict
from agent.policy.verdict import Flow
from host.rtnl import IPAddress, Link, Route

_FAILED = 0x20  # NUD_FAILED of linux/neighbour.h
_INCOMPLETE = 0x01  # NUD_INCOMPLETE
_MAX_DETAILED = 3  # endpoints in order whose hops are all told


@dataclass(frozen=True)
class Hop:
    """One table asked. `ok` False: the packet ends here, and `text` says why."""

    table: str
    text: str
    ok: bool = True


@dataclass(frozen=True)
class Question:
    """What to trace.

    Attributes:
        protocol, port: at the target.
        service: the Service that the target is an address of, where that is known from elsewhere.
        nodes: the node each address is on, where that is known from elsewhere.
    """

    source: IPAddress
    target: IPAddress
    protocol: str = "tcp"
    port: int = 80
    service: str = ""
    nodes: Mapping[IPAddress, IPAddress] = field(default_factory=dict)


def trace(tables: Tables, question: Question) -> list[Hop]:
    """The hops of a packet. Each way ends with the hop that is not ok; of a Service each endpoint is one."""
    hops, lost = _until_lost(_start(tables, question))
    if lost:
        return hops
    entry = netservices.matching(tables, question.target, question.protocol, question.port)
    if entry is None:
        if question.service:
            what = f"no rule for {question.service}, {question.target} port {question.port}"
            return [*hops, Hop("service", f"{what}: the service rules are not written (yet)", ok=False)]
        return [*hops, *_way(tables, question, question.target, question.port)]
    ends = netservices.endpoints(tables, entry.target) if entry.target else []
    hops.append(_service(tables, question, entry, ends))
    return [*hops, *(_all_ends(tables, question, ends) if hops[-1].ok else ())]


def _until_lost(hops: Iterator[Hop]) -> tuple[list[Hop], bool]:
    """The hops up to the one that fails, and whether there is one."""
    taken = []
    for hop in hops:
        taken.append(hop)
        if not hop.ok:
            return taken, True
    return taken, False


# --- services --------------------------------------------------------------------------------------------


def _service(
    tables: Tables, question: Question, entry: netservices.Entry, ends: list[netservices.Endpoint]
) -> Hop:
    what = f"{question.target} port {question.port} is {entry.name}"
    if entry.refusal:
        return Hop("service", f"{what}, which {entry.refusal}", ok=False)
    if not ends:
        return Hop("service", f"{what}, but {entry.target} leads to no endpoint", ok=False)
    reason = netservices.unreached(tables, entry, from_here=question.source in tables.own)
    if reason:
        return Hop("service", f"{what}, but {reason}", ok=False)
    return Hop("service", f"{what}: {len(ends)} endpoint{'s' if len(ends) > 1 else ''}")


def _all_ends(tables: Tables, question: Question, ends: list[netservices.Endpoint]) -> list[Hop]:
    """Every endpoint's way, because a packet may take any; in full where one fails, and for the first few."""
    hops: list[Hop] = []
    silent = detailed = 0
    for number, (address, port) in enumerate(ends, 1):
        way = _way(tables, question, address, port)
        lost = not all(hop.ok for hop in way)
        if not lost and detailed >= _MAX_DETAILED:
            silent += 1
            continue
        detailed += not lost
        hops += [Hop("endpoint", f"{number} of {len(ends)}: {address} port {port}"), *way]
    return [*hops, *([Hop("endpoint", f"{silent} more, nothing in the way")] if silent else [])]


# --- the way to one address ------------------------------------------------------------------------------


def _way(tables: Tables, question: Question, target: IPAddress, port: int) -> list[Hop]:
    """There, and back."""
    hops, lost = _until_lost(_there(tables, question, target, port))
    return hops if lost else [*hops, *_reply(tables, question.source, target)]


def _start(tables: Tables, question: Question) -> Iterator[Hop]:
    source = question.source
    client = pod_of(tables, source)
    if source in tables.own:
        yield Hop("source", f"{source} is this node's")
    elif client is None:
        yield Hop("source", f"{source} is no pod of this node: its own node sees how it gets here")
    else:
        yield _port_state(tables, client, "source")


def _there(tables: Tables, question: Question, target: IPAddress, port: int) -> Iterator[Hop]:
    source = question.source
    if source in tables.own or target in tables.own:
        yield Hop("policy", "a node and its own pods always reach each other")
    else:
        yield _policy(tables, Flow(str(source), str(target), question.protocol, port))
        if refusal := _not_forwarded(tables, source, target):
            yield Hop("forward", refusal, ok=False)
    if target in tables.own:
        yield Hop("address", f"{target} is this node's")
    else:
        yield from _to(tables, target, question.nodes.get(target))


def _to(tables: Tables, target: IPAddress, node: IPAddress | None = None) -> Iterator[Hop]:
    """By route to an address that is not this node's."""
    route = tables.route(target)
    if route is None:
        yield Hop("route", f"no route to {target}", ok=False)
        return
    device = tables.link(route.index)
    if device is None or not device.up:
        yield Hop("route", f"{_shown(route, device)}: the device is down", ok=False)
        return
    server = pod_of(tables, target)
    if server is not None and server.link.master not in (0, device.index):
        bridge = tables.link(server.link.master)
        text = f"{_shown(route, device)}, but {server.pod or target} is on {bridge.name if bridge else '?'}"
        yield Hop("route", text, ok=False)
        return
    if node is not None and server is None and node not in tables.own and device.kind == "bridge":
        text = f"{_shown(route, device)}, but {target} is on node {node}"
        yield Hop("route", text, ok=False)
        return
    yield Hop("route", _shown(route, device))
    if device.kind == "bridge":
        yield from _bridge(tables, device, target)
    elif device.kind == "wireguard":
        yield from _encrypted(tables, device, route, node)
    elif device.kind == "vxlan":
        yield from _tunnel(tables, device, route, node)
    elif node is not None and route.gateway is not None and route.gateway != node and target != node:
        yield Hop("device", f"{device.name} sends it to {route.gateway}, not to node {node}", ok=False)
    else:
        yield Hop("device", f"{device.name} sends it{f' to {route.gateway}' if route.gateway else ''}")


def _reply(tables: Tables, source: IPAddress, target: IPAddress) -> Iterator[Hop]:
    """How the answer comes to the source, as one hop: where it fails, or how it goes."""
    if source in tables.own:
        return
    hops, lost = _until_lost(_to(tables, source))
    last = hops[-1]
    if lost:
        yield Hop("reply", f"to {source}: {last.table}: {last.text}", ok=False)
    else:
        yield Hop("reply", f"to {source}: {hops[0].text}")


def pod_of(tables: Tables, address: IPAddress) -> PodPort | None:
    """The pod of this node that has an address."""
    return next((port for port in tables.pods if address in port.ips), None)


def _port_state(tables: Tables, port: PodPort, table: str) -> Hop:
    bridge = tables.link(port.link.master)
    who = f"{port.link.name} of {port.pod or port.sandbox}"
    if not port.link.up:
        return Hop(table, f"{who} is down", ok=False)
    if bridge is None:
        return Hop(table, f"{who} is in no bridge", ok=False)
    return Hop(table, f"{who}, port of {bridge.name}")


# --- what stands in the way ------------------------------------------------------------------------------


def _policy(tables: Tables, flow: Flow) -> Hop:
    if tables.policies is None:
        return Hop("policy", "no table: no policy is enforced here")
    found = verdict.judge(tables.policies, flow)
    what = f"{flow.protocol} {flow.client} to {flow.server} port {flow.port}"
    if found.passes:
        return Hop("policy", f"{what} is allowed")
    if not found.policies:
        return Hop("policy", f"{what} is dropped in {found.chain}", ok=False)
    whose = "the client" if found.chain.startswith("pods-out-") else "the server"
    names = ", ".join(found.policies)
    return Hop("policy", f"{what}: {whose} is isolated, and none of {names} allows it", ok=False)


def _not_forwarded(tables: Tables, source: IPAddress, target: IPAddress) -> str:
    """Why the kernel passes nothing on from one device to another; "" when it does."""
    near, far = pod_of(tables, source), pod_of(tables, target)
    one_bridge = near is not None and far is not None and near.link.master == far.link.master
    if not one_bridge and target.version not in tables.forwards:
        name = "net.ipv4.ip_forward" if target.version == 4 else "net.ipv6.conf.all.forwarding"
        return f"{name} is 0: set it to 1"
    return netservices.forward_refusal(tables, target)


# --- the last metre --------------------------------------------------------------------------------------


def _shown(route: Route, device: Link | None) -> str:
    via = f" via {route.gateway}" if route.gateway else ""
    return f"{route.destination}{via} dev {device.name if device else route.index}"


def _neighbour(tables: Tables, device: Link, address: IPAddress, *, must: bool) -> tuple[Hop, str]:
    """The hop, and the MAC where there is one."""
    entry = tables.neighbour(device.index, address)
    if entry is None:
        text = f"no entry for {address} on {device.name}"
        return Hop("neighbour", text if must else f"{text}: the kernel will ask", ok=not must), ""
    if entry.state & (_FAILED | _INCOMPLETE):
        return Hop("neighbour", f"{address} does not answer on {device.name}", ok=False), ""
    return Hop("neighbour", f"{address} is {entry.mac} on {device.name}"), entry.mac


def _bridge(tables: Tables, bridge: Link, target: IPAddress) -> Iterator[Hop]:
    hop, mac = _neighbour(tables, bridge, target, must=False)
    server = pod_of(tables, target)
    if server is None:
        yield hop
        yield Hop("pod", f"no pod of this node has {target}", ok=False)
        return
    behind = {e.mac for e in tables.fdb.get(server.link.index, ())} - {server.link.mac, bridge.mac}
    ports = [
        link
        for link in tables.links
        if link.master == bridge.index and any(e.mac == mac for e in tables.fdb.get(link.index, ()))
    ]
    if mac and behind and mac not in behind and not ports:
        seen = ", ".join(sorted(behind))
        yield Hop("neighbour", f"{hop.text}, but {server.link.name} has {seen}", ok=False)
        return
    yield hop
    yield _port_state(tables, server, "pod")
    if mac and ports and server.link not in ports:
        yield Hop("fdb", f"{mac} is behind {ports[0].name}, not {server.link.name}", ok=False)


def _encrypted(tables: Tables, device: Link, route: Route, node: IPAddress | None) -> Iterator[Hop]:
    peer = tables.peer(device.index, route.destination)
    if peer is None:
        yield Hop("peer", f"{device.name} has no peer with {route.destination}", ok=False)
        return
    if node not in (None, peer.host):
        words = f"{route.destination} is behind {peer.host}, but the pod's node is {node}"
        yield Hop("peer", words, ok=False)
        return
    yield Hop("peer", f"{route.destination} is behind {peer.host}")
    yield _underlay(tables, peer.host)


def _underlay(tables: Tables, host: IPAddress) -> Hop:
    outer = tables.route(host)
    link = tables.link(outer.index) if outer else None
    if outer is None or link is None or not link.up:
        return Hop("underlay", f"no way to {host}", ok=False)
    return Hop("underlay", f"{_shown(outer, link)}; node {host} sees the rest")


def _tunnel(tables: Tables, device: Link, route: Route, node: IPAddress | None) -> Iterator[Hop]:
    gateway = route.gateway or route.destination.network_address
    hop, mac = _neighbour(tables, device, gateway, must=True)
    yield hop
    entry = next((e for e in tables.fdb.get(device.index, ()) if e.mac == mac and e.address), None)
    if entry is None or entry.address is None:
        yield Hop("fdb", f"no node for {mac} on {device.name}", ok=False)
        return
    if node not in (None, entry.address):
        yield Hop("fdb", f"{mac} is at {entry.address}, but the pod's node is {node}", ok=False)
        return
    yield Hop("fdb", f"{mac} is at {entry.address}")
    yield _underlay(tables, entry.address)
