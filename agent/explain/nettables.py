"""The kernel's network tables of this node, read once: devices, routes, neighbours, FDB, services, policies.

Nothing is asked of the agent or the API: what `nodelet net` shows is what packets meet.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.policy import rules as policy_rules
from agent.policy import verdict
from cni.config import ALIAS
from host import processes, wireguard
from host.errors import HostError
from host.netlink import Netlink
from host.rtnl import IPAddress, IPNetwork, Link, Neighbour, Route
from host.rules import iptables
from host.rules.iptables import Family
from host.wireguard import Tunnel

_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}
_FAMILIES: tuple[Family, ...] = (4, 6)


@dataclass(frozen=True)
class PodPort:
    """The host end of a pod's interface, as its alias tells it."""

    link: Link
    sandbox: str
    interface: str
    ips: tuple[IPAddress, ...]
    pod: str
    """namespace/name; "" where the caller of the plugin told none."""


@dataclass(frozen=True)
class Tables:
    """All of it.

    Attributes:
        own: addresses of this node.
        nat, filter: the chains of iptables' tables, of both families.
        forwards: IP families whose packets the kernel forwards.
        closed: IP families whose FORWARD chain drops what no rule accepts.
        policies: None where there is no table of them.
    """

    links: tuple[Link, ...] = ()
    own: frozenset[IPAddress] = frozenset()
    routes: tuple[Route, ...] = ()
    neighbours: Mapping[int, tuple[Neighbour, ...]] = field(default_factory=dict)
    fdb: Mapping[int, tuple[Neighbour, ...]] = field(default_factory=dict)
    nat: Mapping[str, list[str]] = field(default_factory=dict)
    filter: Mapping[str, list[str]] = field(default_factory=dict)
    forwards: frozenset[int] = frozenset(_FAMILIES)
    closed: frozenset[int] = frozenset()
    policies: verdict.Rules | None = None
    tunnels: Mapping[int, frozenset[Tunnel]] = field(default_factory=dict)
    """Peers of WireGuard devices."""

    def link(self, index: int) -> Link | None:
        """The device of that index."""
        return next((link for link in self.links if link.index == index), None)

    @property
    def pods(self) -> list[PodPort]:
        """Every pod interface made by nodelet-cni, by pod."""
        found = (pod_port(link) for link in self.links)
        return sorted((port for port in found if port), key=lambda port: (port.pod, port.link.name))

    def route(self, address: IPAddress) -> Route | None:
        """The route with the longest prefix that has the address."""
        fitting = [
            r for r in self.routes if r.destination.version == address.version and address in r.destination
        ]
        return max(fitting, key=lambda route: route.destination.prefixlen, default=None)

    def peer(self, device: int, net: IPNetwork) -> Tunnel | None:
        """The peer of a WireGuard device that has this range behind it."""
        return next((each for each in self.tunnels.get(device, ()) if net in each.ranges), None)

    def neighbour(self, device: int, address: IPAddress) -> Neighbour | None:
        """The entry of an address on a device."""
        return next((n for n in self.neighbours.get(device, ()) if n.address == address), None)


def pod_port(link: Link) -> PodPort | None:
    """What the alias of a pod's host end says ("nodelet SANDBOX/INTERFACE IP,IP NAMESPACE/NAME"). Pure."""
    words = link.alias.split()
    if link.kind != "veth" or len(words) < 3 or words[0] != ALIAS:
        return None
    sandbox, _, interface = words[1].partition("/")
    try:
        ips = tuple(ipaddress.ip_address(text) for text in words[2].split(","))
    except ValueError:
        return None
    return PodPort(link, sandbox, interface, ips, words[3] if len(words) > 3 else "")


def read(proc_sys: Path = Path("/proc/sys")) -> Tables:
    """The tables of the calling thread's network namespace. Needs root.

    Raises:
        HostError: the kernel does not answer.
    """
    nat, filters, closed = _rules()
    with Netlink() as netlink:
        links = tuple(netlink.links())
        tunnels = [link.index for link in links if link.kind in ("bridge", "vxlan")]
        ports = [link.index for link in links if link.master]
        return Tables(
            links=links,
            own=frozenset(found.address.ip for found in netlink.addresses()),
            routes=tuple(netlink.routes()),
            neighbours={index: tuple(netlink.neighbours(index)) for index in tunnels},
            fdb={index: tuple(netlink.fdb(index)) for index in (*tunnels, *ports)},
            nat=nat,
            filter=filters,
            forwards=frozenset(f for f in _FAMILIES if _is_on(proc_sys / _FORWARDING[f])),
            closed=frozenset(closed),
            policies=_policies(),
            tunnels=_tunnels(links),
        )


def _tunnels(links: Iterable[Link]) -> dict[int, frozenset[Tunnel]]:
    devices = [link for link in links if link.kind == wireguard.KIND]
    if not devices:
        return {}
    with wireguard.WireGuard() as asked:
        return {link.index: asked.facts(link.name).tunnels for link in devices}


def _rules() -> tuple[dict[str, list[str]], dict[str, list[str]], list[int]]:
    """nat, filter, and the families whose FORWARD drops by default."""
    found: dict[str, dict[str, list[str]]] = {"nat": {}, "filter": {}}
    closed: list[int] = []
    for family in _FAMILIES:
        try:
            text = iptables.save(family=family)
        except HostError:
            continue  # without iptables of this family there are no service rules either
        tables = iptables.parse_save(text)
        for name, chains in found.items():
            for chain, listed in tables.get(name, {}).items():
                chains.setdefault(chain, []).extend(listed)
        closed += [family] if re.search(r"(?s)^\*filter\n[^*]*^:FORWARD DROP ", text, re.MULTILINE) else []
    return found["nat"], found["filter"], closed


def _is_on(path: Path) -> bool:
    try:
        return path.read_text().strip() != "0"
    except OSError:
        return False  # a kernel without this family


def _policies() -> verdict.Rules | None:
    try:
        done = processes.run(["nft", "-y", "list", "table", "inet", policy_rules.TABLE], check=False)
    except HostError:
        return None
    return verdict.parse(done.stdout.decode(errors="replace")) if done.returncode == 0 else None
