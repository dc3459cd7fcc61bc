"""The kernel's network tables of this node, read once: devices, routes, neighbours, FDB, services, policies.

Nothing is asked of the agent or the API: what `nodelet net` shows is what packets meet.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.policy import rules as policy_rules
from agent.policy import verdict
from host import processes
from host.errors import HostError, InputError
from host.netlink import Netlink
from host.rtnl import IPAddress, Link, Neighbour, Route
from host.rules import iptables

_ALIAS = "nodelet"


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
    """All of it. `nat` are the chains of iptables' nat table of both families; `policies` None: no table."""

    links: tuple[Link, ...] = ()
    own: frozenset[IPAddress] = frozenset()
    routes: tuple[Route, ...] = ()
    neighbours: Mapping[int, tuple[Neighbour, ...]] = field(default_factory=dict)
    fdb: Mapping[int, tuple[Neighbour, ...]] = field(default_factory=dict)
    nat: Mapping[str, list[str]] = field(default_factory=dict)
    policies: verdict.Rules | None = None

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

    def neighbour(self, device: int, address: IPAddress) -> Neighbour | None:
        """The entry of an address on a device."""
        return next((n for n in self.neighbours.get(device, ()) if n.address == address), None)


def pod_port(link: Link) -> PodPort | None:
    """What the alias of a pod's host end says ("nodelet SANDBOX/INTERFACE IP,IP NAMESPACE/NAME"). Pure."""
    words = link.alias.split()
    if link.kind != "veth" or len(words) < 3 or words[0] != _ALIAS:
        return None
    sandbox, _, interface = words[1].partition("/")
    try:
        ips = tuple(ipaddress.ip_address(text) for text in words[2].split(","))
    except ValueError:
        return None
    return PodPort(link, sandbox, interface, ips, words[3] if len(words) > 3 else "")


def read() -> Tables:
    """The tables of the calling thread's network namespace. Needs root.

    Raises:
        HostError: the kernel does not answer.
    """
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
            nat=_nat(),
            policies=_policies(),
        )


def _nat() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for family in (4, 6):
        try:
            chains = iptables.parse_save(iptables.save("nat", family=family)).get("nat", {})
        except HostError:
            continue  # without iptables of this family there are no service rules either
        for name, listed in chains.items():
            found.setdefault(name, []).extend(listed)
    return found


def _policies() -> verdict.Rules | None:
    try:
        done = processes.run(["nft", "-y", "list", "table", "inet", policy_rules.TABLE], check=False)
    except HostError:
        return None
    return verdict.parse(done.stdout.decode(errors="replace")) if done.returncode == 0 else None


def find(tables: Tables, word: str) -> tuple[IPAddress, PodPort | None]:
    """The address that a word on the command line means, and its pod if it is one of this node.

    Raises:
        InputError: it is no address, and no pod of this node.
    """
    pods = tables.pods
    try:
        address = ipaddress.ip_address(word)
    except ValueError:
        named = [port for port in pods if word in (port.pod, port.pod.partition("/")[2])]
        if len(named) == 1:
            return named[0].ips[0], named[0]
        problem = "several pods" if named else "no pod"
        fix = "say NAMESPACE/POD" if named else "give its address, or see nodelet net ls"
        raise InputError(f"{problem} of this node {'are' if named else 'is'} called {word}: {fix}") from None
    return address, next((port for port in pods if address in port.ips), None)
