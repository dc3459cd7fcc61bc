"""A packet's way through this node's tables, hop by hop, up to the one that fails.

    source → service rules → policies → route ─┬→ bridge: neighbour, the pod's port
                                               └→ tunnel: neighbour, FDB, underlay

Pure: judges a `Tables` value. What another node does with the packet is asked there.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from agent.explain.nettables import PodPort, Tables
from agent.policy import verdict
from agent.policy.verdict import Flow
from host.rtnl import IPAddress, Link, Route

_FAILED = 0x20  # NUD_FAILED of linux/neighbour.h
_INCOMPLETE = 0x01  # NUD_INCOMPLETE
_MAX_ENDPOINTS = 3


@dataclass(frozen=True)
class Hop:
    """One table asked. `ok` False: the packet ends here, and `text` says why."""

    table: str
    text: str
    ok: bool = True


def trace(tables: Tables, source: IPAddress, target: IPAddress, *, protocol: str, port: int) -> list[Hop]:
    """The hops of a packet; the last one is not ok where it is lost."""
    hops: list[Hop] = []
    for hop in _hops(tables, source, target, protocol, port):
        hops.append(hop)
        if not hop.ok:
            break
    return hops


def _hops(tables: Tables, source: IPAddress, target: IPAddress, protocol: str, port: int) -> Iterator[Hop]:
    client = pod_of(tables, source)
    yield from _leave(tables, source, client)
    endpoints = _endpoints(tables, target, protocol, port)
    if endpoints is not None:
        yield _service(target, port, endpoints)
        target, port = endpoints[0]
    if source not in tables.own and target not in tables.own:
        yield _policy(tables, Flow(str(source), str(target), protocol, port))
    else:
        yield Hop("policy", "a node and its own pods always reach each other")
    if target in tables.own:
        yield Hop("address", f"{target} is this node's")
        return
    route = tables.route(target)
    if route is None:
        yield Hop("route", f"no route to {target}", ok=False)
        return
    device = tables.link(route.index)
    if device is None or not device.up:
        yield Hop("route", f"{_shown(route, device)}: the device is down", ok=False)
        return
    yield Hop("route", _shown(route, device))
    if device.kind == "bridge":
        yield from _bridge(tables, device, target)
    elif device.kind == "vxlan":
        yield from _tunnel(tables, device, route)
    else:
        yield Hop("device", f"{device.name} sends it{f' to {route.gateway}' if route.gateway else ''}")


def pod_of(tables: Tables, address: IPAddress) -> PodPort | None:
    """The pod of this node that has an address."""
    return next((port for port in tables.pods if address in port.ips), None)


def _leave(tables: Tables, source: IPAddress, client: PodPort | None) -> Iterator[Hop]:
    if source in tables.own:
        yield Hop("source", f"{source} is this node's")
    elif client is None:
        yield Hop("source", f"{source} is no pod of this node: its own node sees how it gets here")
    else:
        yield _port_state(tables, client, "source")


def _port_state(tables: Tables, port: PodPort, table: str) -> Hop:
    bridge = tables.link(port.link.master)
    who = f"{port.link.name} of {port.pod or port.sandbox}"
    if not port.link.up:
        return Hop(table, f"{who} is down", ok=False)
    if bridge is None:
        return Hop(table, f"{who} is in no bridge", ok=False)
    return Hop(table, f"{who}, port of {bridge.name}")


# --- services --------------------------------------------------------------------------------------------


def _endpoints(
    tables: Tables, target: IPAddress, protocol: str, port: int
) -> list[tuple[IPAddress, int]] | None:
    """Where the service rules send a packet; None when they have none for this address and port."""
    for rule in tables.nat.get("KUBE-SERVICES", ()):
        words = rule.split()
        wanted = (f"{target}/{target.max_prefixlen}", protocol, str(port))
        if (_after(words, "-d"), _after(words, "-p"), _after(words, "--dport")) == wanted:
            return sorted(set(_destinations(tables, _after(words, "-j"), set())), key=str)
    return None


def _destinations(tables: Tables, chain: str, seen: set[str]) -> Iterator[tuple[IPAddress, int]]:
    if chain in seen:
        return
    seen.add(chain)
    for rule in tables.nat.get(chain, ()):
        words = rule.split()
        if to := _after(words, "--to-destination"):
            address, _, number = to.rpartition(":")
            yield ipaddress.ip_address(address.strip("[]")), int(number)
        elif _after(words, "-j").startswith(("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-SEP-")):
            yield from _destinations(tables, _after(words, "-j"), seen)


def _after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1] if flag in words[:-1] else ""


def _service(target: IPAddress, port: int, endpoints: list[tuple[IPAddress, int]]) -> Hop:
    if not endpoints:
        return Hop("service", f"{target} port {port} has no endpoint that serves", ok=False)
    shown = ", ".join(f"{ip} port {number}" for ip, number in endpoints[:_MAX_ENDPOINTS])
    more = f" and {len(endpoints) - _MAX_ENDPOINTS} more" if len(endpoints) > _MAX_ENDPOINTS else ""
    rest = "" if len(endpoints) == 1 else "; the first is followed here"
    return Hop("service", f"{target} port {port} is {shown}{more}{rest}")


# --- policies --------------------------------------------------------------------------------------------


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
    yield hop
    server = pod_of(tables, target)
    if server is None:
        yield Hop("pod", f"no pod of this node has {target}", ok=False)
        return
    yield _port_state(tables, server, "pod")
    learned = [index for index, entries in tables.fdb.items() if any(e.mac == mac for e in entries)]
    ports = [link for link in tables.links if link.index in learned and link.master == bridge.index]
    if mac and ports and server.link not in ports:
        yield Hop("fdb", f"{mac} is behind {ports[0].name}, not {server.link.name}", ok=False)


def _tunnel(tables: Tables, device: Link, route: Route) -> Iterator[Hop]:
    gateway = route.gateway or route.destination.network_address
    hop, mac = _neighbour(tables, device, gateway, must=True)
    yield hop
    entry = next((e for e in tables.fdb.get(device.index, ()) if e.mac == mac and e.address), None)
    if entry is None or entry.address is None:
        yield Hop("fdb", f"no node for {mac} on {device.name}", ok=False)
        return
    yield Hop("fdb", f"{mac} is at {entry.address}")
    outer = tables.route(entry.address)
    link = tables.link(outer.index) if outer else None
    if outer is None or link is None or not link.up:
        yield Hop("underlay", f"no way to {entry.address}", ok=False)
        return
    yield Hop("underlay", f"{_shown(outer, link)}; node {entry.address} sees the rest")
