"""The nft side of policies: names, the chains every packet starts in, and the rules of one policy.

    forward   (hook, before iptables' filter)
      ct original ip saddr vmap @egress-4    client → goto pods-out-…   its policies: jump out-…; drop
      goto ingress                                        └ allowed: goto ingress
    ingress
      ct reply ip saddr vmap @ingress-4      server → goto pods-in-…    its policies: jump in-…; drop
      accept                                              └ allowed: accept

**Every packet is judged by its connection**, not by its own addresses: the client is the source of the
connection's original direction, the server and its port are the source of the reply direction. So a reply
passes exactly when its connection is allowed, an address translated by a Service does not matter, and a
connection that a new policy forbids stops at its next packet in either direction. Accepting what is
"established" and flushing conntrack after a change, as others do, leaves forbidden TCP connections alive: the
next packet makes a new entry (nf_conntrack_tcp_loose), perhaps in the other direction
(kubernetes-sigs/kube-network-policies#246).

Packets without a connection (conntrack calls them invalid or untracked) are judged by their own addresses
and pass only between pods that are not isolated.

Only forwarded packets come here, so what the node itself sends to its pods (probes) and they to it passes, as
the specification says. Packets that the bridge passes from pod to pod come here because of br_netfilter.

Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from agent.policy.model import Allow, Block, Peers, Policy, Port

Direction = Literal["in", "out"]
DIRECTIONS: tuple[Direction, ...] = ("in", "out")

TABLE = "nodelet-policy"
DROPPED = "dropped"
"""The counter of packets that policies drop."""
HOOK = "type filter hook forward priority -10; policy accept;"
ALONE = "self"
"""Sets of (pod address, the same address): a pod that reaches itself through a Service."""

_IP = {4: "ip", 6: "ip6"}
_ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
_PEER: Mapping[Direction, str] = {"in": "original", "out": "reply"}
_WHOLE_FAMILY = {"0.0.0.0/0": "ipv4", "::/0": "ipv6"}
_NO_CONNECTION = "ct state invalid,untracked"
FAMILIES = (4, 6)
_ANY = 0

Numbers = Mapping[tuple[str, str], Sequence[int]]
"""(protocol, port name): the numbers that pods give it."""


def base_sets() -> Iterator[tuple[str, str]]:
    """(name, type) of the maps from pods to their policies, and of ALONE."""
    for family in FAMILIES:
        address = _ADDRESS[family]
        yield pods_map("in", family), f"{address} : verdict"
        yield pods_map("out", family), f"{address} : verdict"
        yield f"{ALONE}-{family}", f"{address} . {address}"


def base_chains() -> Iterator[tuple[str, str, list[str]]]:
    """(name, hook, rules) of the chains every packet starts in."""
    forward = [
        # Neighbour discovery and multicast membership have no connections and belong to the link.
        "icmpv6 type { 130-137, mld2-listener-report } accept",
        # Errors such as "fragmentation needed" about a connection that is there; they reach its ends.
        "ct state related meta l4proto { icmp, ipv6-icmp } accept",
        # Link-local addresses belong to no pod we know, and only the bridge could pass them on.
        "ip6 saddr fe80::/10 drop",
        "ip6 daddr fe80::/10 drop",
    ]
    forward += [f"ct original {_IP[f]} saddr . ct reply {_IP[f]} saddr @{ALONE}-{f} accept" for f in FAMILIES]
    forward += [f"ct original {_IP[f]} saddr vmap @{pods_map('out', f)}" for f in FAMILIES]
    forward += [f"{_NO_CONNECTION} {_IP[f]} saddr vmap @{pods_map('out', f)}" for f in FAMILIES]
    ingress = [f"ct reply {_IP[f]} saddr vmap @{pods_map('in', f)}" for f in FAMILIES]
    ingress += [f"{_NO_CONNECTION} {_IP[f]} daddr vmap @{pods_map('in', f)}" for f in FAMILIES]
    yield "ingress", "", [*ingress, "accept"]
    yield "forward", HOOK, [*forward, "goto ingress"]


def pods_map(direction: Direction, family: int) -> str:
    """The map from isolated pods' addresses to their chains."""
    return f"{'ingress' if direction == 'in' else 'egress'}-{family}"


def peers_set(peers: Peers, family: int) -> str:
    """The set of addresses of the pods that a peer selects."""
    return f"peer-{_hash(repr(peers))}-{family}"


def port_set(protocol: str, name: str, number: int, family: int) -> str:
    """The set of addresses of the pods that give this number to a port of this name."""
    return f"port-{_hash(f'{protocol} {name}')}-{number}-{family}"


def address_type(family: int) -> str:
    """Type of the sets of one family."""
    return _ADDRESS[family]


def policy_chain(direction: Direction, key: str) -> str:
    """The chain of what a policy ("namespace/name") allows."""
    return f"{direction}-{_hash(key)}"


def pods_chain(direction: Direction, keys: Sequence[str]) -> str:
    """The chain of the pods that exactly these policies isolate."""
    return f"pods-{direction}-{_hash(' '.join(keys))}"


def pods_rules(direction: Direction, keys: Sequence[str], comment: Mapping[str, str]) -> list[str]:
    """The rules of such a chain; `comment` gives the quoted name of each policy."""
    jumps = [f"jump {policy_chain(direction, key)} comment {comment[key]}" for key in keys]
    return [*jumps, f'counter name "{DROPPED}" drop']


def policy_rules(policy: Policy, direction: Direction, numbers: Numbers) -> list[str]:
    """The rules of a policy's chain."""
    verdict = "accept" if direction == "in" else "goto ingress"
    matches = (
        f"{peer}{port}{verdict}"
        for allow in policy.allows(direction) or ()
        for family, peer in _peers(allow, direction)
        for other, port in _ports(allow, numbers)
        if family in (other, _ANY) or other == _ANY
    )
    return list(dict.fromkeys(matches))


def _peers(allow: Allow, direction: Direction) -> Iterator[tuple[int, str]]:
    """(family, match) of each peer."""
    if allow.peers is None:
        yield _ANY, ""
        return
    end = _PEER[direction]
    for peer in allow.peers:
        if isinstance(peer, Block):
            yield peer.family, _block(peer, end)
        else:
            for family in FAMILIES:
                yield family, f"ct {end} {_IP[family]} saddr @{peers_set(peer, family)} "


def _block(block: Block, end: str) -> str:
    address = f"ct {end} {_IP[block.family]} saddr"
    whole = _WHOLE_FAMILY.get(block.cidr)
    match = f"meta nfproto {whole} " if whole else f"{address} {block.cidr} "
    if len(block.excepts) == 1:
        match += f"{address} != {block.excepts[0]} "
    elif block.excepts:
        match += f"{address} != {{ {', '.join(block.excepts)} }} "
    return match


def _ports(allow: Allow, numbers: Numbers) -> Iterator[tuple[int, str]]:
    """(family, match) of each port; a named one matches the pods that give it the same number."""
    if allow.ports is None:
        yield _ANY, ""
        return
    for port in allow.ports:
        if not port.name:
            yield _ANY, _numbers(port)
            continue
        for number in numbers.get((port.protocol, port.name), ()):
            for family in FAMILIES:
                pods = port_set(port.protocol, port.name, number, family)
                match = _numbers(Port(port.protocol, number, number))
                yield family, f"ct reply {_IP[family]} saddr @{pods} {match}"


def _numbers(port: Port) -> str:
    match = f"meta l4proto {port.protocol.lower()} "
    if not port.last:
        return match
    # One rule a range: nft 1.0.6 cannot show a set of these.
    span = str(port.first) if port.first == port.last else f"{port.first}-{port.last}"
    return f"{match}ct reply proto-src {span} "


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
