"""What a NetworkPolicy says: whom it isolates, and what it allows nevertheless.

    Policy ─┬─ ingress: None (does not isolate) or Allows ─┬─ peers: None (everybody) or Peers and Blocks
            └─ egress                                      └─ ports: None (all of them) or Ports

Everything is a hashable value. A part that makes no sense allows nothing and is told: a policy is never
more open than it was meant to be. The API server refuses such parts, so they come from a server older or
newer than we know.

Source: k8s.io/api/networking/v1/types.go; kubernetes.io/docs/concepts/services-networking/network-policies.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from agent.api.structs import IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort
from agent.policy.selectors import EVERYTHING, Selector, selector

PROTOCOLS = ("TCP", "UDP", "SCTP")


@dataclass(frozen=True)
class Peers:
    """Pods by labels: of one namespace, or of all namespaces whose labels match."""

    namespace: str
    """The one namespace; "" where `namespaces` selects."""
    namespaces: Selector | None
    pods: Selector


@dataclass(frozen=True)
class Block:
    """A network (its text is normalised) without some parts of it."""

    cidr: str
    excepts: tuple[str, ...]

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.cidr else 4


@dataclass(frozen=True)
class Port:
    """Ports of a protocol: a range of numbers, a name (`name` set), or all of them (`last` 0)."""

    protocol: str
    first: int = 0
    last: int = 0
    name: str = ""


@dataclass(frozen=True)
class Allow:
    """One rule: traffic of any of these peers on any of these ports."""

    peers: tuple[Peers | Block, ...] | None
    ports: tuple[Port, ...] | None


@dataclass(frozen=True)
class Policy:
    """One NetworkPolicy. `key` is "namespace/name"."""

    key: str
    namespace: str
    pods: Selector
    ingress: tuple[Allow, ...] | None
    egress: tuple[Allow, ...] | None
    problems: tuple[str, ...] = ()

    def allows(self, direction: str) -> tuple[Allow, ...] | None:
        """What it allows "in" or "out"; None when it does not isolate in this direction."""
        return self.ingress if direction == "in" else self.egress


def parse(policy: NetworkPolicy) -> Policy:
    """The meaning of an API object. Pure.

    Without `policyTypes` a policy isolates for ingress always, and for egress when it has egress rules.
    """
    spec, namespace = policy.spec, policy.metadata.namespace
    types = spec.policy_types or (("Ingress", "Egress") if spec.egress else ("Ingress",))
    problems: list[str] = []

    def allow(where: str, peers: Sequence[NetworkPolicyPeer], ports: Sequence[NetworkPolicyPort]) -> Allow:
        return Allow(
            _peers(peers, namespace, f"{where}.peers", problems) if peers else None,
            _ports(ports, f"{where}.ports", problems) if ports else None,
        )

    ingress = tuple(allow(f"ingress[{n}]", r.from_, r.ports) for n, r in enumerate(spec.ingress))
    egress = tuple(allow(f"egress[{n}]", r.to, r.ports) for n, r in enumerate(spec.egress))
    return Policy(
        key=f"{namespace}/{policy.metadata.name}",
        namespace=namespace,
        pods=selector(spec.pod_selector),
        ingress=ingress if "Ingress" in types else None,
        egress=egress if "Egress" in types else None,
        problems=tuple(problems),
    )


def _peers(
    peers: Sequence[NetworkPolicyPeer], namespace: str, where: str, problems: list[str]
) -> tuple[Peers | Block, ...]:
    found: list[Peers | Block] = []
    for peer in peers:
        if peer.ip_block is not None:
            block = _block(peer.ip_block, where, problems)
            found += [block] if block else []
        elif peer.namespace_selector is not None:
            pods = selector(peer.pod_selector) if peer.pod_selector is not None else EVERYTHING
            found.append(Peers("", selector(peer.namespace_selector), pods))
        elif peer.pod_selector is not None:
            found.append(Peers(namespace, None, selector(peer.pod_selector)))
        else:
            problems.append(f"{where}: a peer without any selector")
    return tuple(dict.fromkeys(found))


def _block(block: IPBlock, where: str, problems: list[str]) -> Block | None:
    try:
        network = ipaddress.ip_network(block.cidr, strict=False)
        excepts = [ipaddress.ip_network(text, strict=False) for text in block.except_]
    except ValueError as exc:
        problems.append(f"{where}: ipBlock: {exc}")
        return None
    # Parts of the other family are no part of this network; nft wants parts that do not overlap.
    own = [one for one in excepts if one.version == network.version]
    return Block(str(network), tuple(map(str, ipaddress.collapse_addresses(own))))  # type: ignore[type-var]


def _ports(ports: Sequence[NetworkPolicyPort], where: str, problems: list[str]) -> tuple[Port, ...]:
    found = []
    for port in ports:
        if port.protocol not in PROTOCOLS:
            problems.append(f"{where}: protocol {port.protocol[:20]!r}")
        elif port.port is None:
            found.append(Port(port.protocol))
        elif isinstance(port.port, str):
            found.append(Port(port.protocol, name=port.port))
        else:
            last = port.port if port.end_port is None else port.end_port
            if 1 <= port.port <= last <= 65535:
                found.append(Port(port.protocol, port.port, last))
            else:
                problems.append(f"{where}: ports {port.port} to {last}")
    return tuple(dict.fromkeys(found))
