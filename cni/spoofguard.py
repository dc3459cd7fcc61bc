"""What a pod may send: frames with its own MAC and its own addresses, and no more.

A pod can have CAP_NET_RAW, and with it could answer for other pods' addresses (CVE-2020-8554's cousin on
layer 2, ARP and ND spoofing), send in their name past a NetworkPolicy, become everybody's IPv6 router
(CVE-2020-10749), or speak spanning tree to the bridge. One program at the node's end of its veth ends all of
that before the bridge sees a frame:

    source MAC           the pod's
    IPv4                 source is the pod's address
    ARP                  sender is the pod's MAC, and its address or 0.0.0.0 (a probe, RFC 5227)
    IPv6                 source is the pod's address, link-local, or :: (duplicate detection)
    ICMPv6               no router advertisement, no redirect; a neighbour advertisement speaks of an address
                         that would be allowed as source; none of these hidden behind extension headers
    anything else        is dropped

Pure: addresses in, classic BPF out, which host.traffic hands to the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from host.rtnl import IPAddress, mac_bytes
from host.traffic import TC_ACT_SHOT, TC_ACT_UNSPEC, Instruction

_LD_WORD, _LD_HALF, _LD_BYTE, _LD_LENGTH = 0x20, 0x28, 0x30, 0x80
_JEQ, _JGE, _AND, _RETURN = 0x15, 0x35, 0x54, 0x06
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_ETHER, _ARP_END, _IPV6_HEADER, _ICMP6_TARGET_END = 14, 42, 54, 78
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTH, _ICMP6, _DESTINATION = 0, 43, 44, 51, 58, 60
_ROUTER_ADVERTISEMENT, _NEIGHBOUR_ADVERTISEMENT, _REDIRECT = 134, 136, 137
_MULTICAST_LISTENER = (130, 131, 132, 143)
_PASS, _DROP = "pass", "drop"

Step = tuple[int, int, str, str]  # code, k, label if true, label if false; '' is the next step


def program(mac: str, addresses: Sequence[IPAddress]) -> list[Instruction]:
    """The guard of a pod interface.

    Args:
        mac: of the pod's interface.
        addresses: of the pod, at most one of each family.

    Returns:
        A program that drops (TC_ACT_SHOT) or passes on to the next filter (TC_ACT_UNSPEC).
    """
    four = next((address.packed for address in addresses if address.version == 4), None)
    six = next((address.packed for address in addresses if address.version == 6), None)
    high, low = struct.unpack("!HI", mac_bytes(mac))
    blocks: dict[str, list[Step]] = {
        "start": [
            *_at_least(_ETHER + 20),
            *_same(_LD_HALF, 6, high),
            *_same(_LD_WORD, 8, low),
            (_LD_HALF, 12, "", ""),
            (_JEQ, _IPV4, "ipv4", ""),
            (_JEQ, _ARP, "arp", ""),
            (_JEQ, _IPV6, "ipv6", _DROP),
        ],
        "ipv4": [*_same(_LD_WORD, 26, _word(four)), _goto(_PASS)] if four else [_goto(_DROP)],
        "arp": _arp(high, low, four) if four else [_goto(_DROP)],
        "ipv6": [*_at_least(_IPV6_HEADER), *_allowed(22, six, then="next-header", unspecified=True)],
        "next-header": _next_header(),
        "extension": [
            (_LD_BYTE, _IPV6_HEADER, "", ""),
            *((_JEQ, kind, _DROP, "") for kind in (_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTH, _DESTINATION)),
            (_JEQ, _ICMP6, _DROP, _PASS),
        ],
        "hop-by-hop": [
            (_LD_HALF, _IPV6_HEADER, "", ""),
            (_JEQ, _ICMP6 << 8, "", _DROP),  # then ICMPv6, after the one option multicast listeners send
            (_LD_BYTE, _IPV6_HEADER + 8, "", ""),
            *((_JEQ, kind, _PASS, "") for kind in _MULTICAST_LISTENER),
            _goto(_DROP),
        ],
        "icmp6": [
            (_LD_BYTE, _IPV6_HEADER, "", ""),
            (_JEQ, _ROUTER_ADVERTISEMENT, _DROP, ""),
            (_JEQ, _REDIRECT, _DROP, ""),
            (_JEQ, _NEIGHBOUR_ADVERTISEMENT, "", _PASS),
            *_at_least(_ICMP6_TARGET_END),
            *_allowed(_IPV6_HEADER + 8, six, then=_PASS, unspecified=False),
        ],
        _PASS: [(_RETURN, TC_ACT_UNSPEC, "", "")],
        _DROP: [(_RETURN, TC_ACT_SHOT, "", "")],
    }
    return _assemble(blocks)


def _next_header() -> list[Step]:
    """The first header after IPv6's own. A fragment passes: Linux takes no neighbour discovery out of those
    (RFC 6980)."""
    return [
        (_LD_BYTE, 20, "", ""),
        (_JEQ, _ICMP6, "icmp6", ""),
        (_JEQ, _HOP_BY_HOP, "hop-by-hop", ""),
        (_JEQ, _ROUTING, "extension", ""),
        (_JEQ, _DESTINATION, "extension", ""),
        (_JEQ, _AUTH, "extension", _PASS),
    ]


def _arp(high: int, low: int, four: bytes) -> list[Step]:
    return [
        *_at_least(_ARP_END),
        *_same(_LD_HALF, 22, high),
        *_same(_LD_WORD, 24, low),
        (_LD_WORD, 28, "", ""),
        (_JEQ, 0, _PASS, ""),
        (_JEQ, _word(four), _PASS, _DROP),
    ]


def _allowed(offset: int, six: bytes | None, *, then: str, unspecified: bool) -> list[Step]:
    """Go on at `then` if the IPv6 address at `offset` is link-local, the pod's, or (if allowed) `::`."""
    steps: list[Step] = [
        (_LD_WORD, offset, "", ""),
        (_AND, 0xFFC00000, "", ""),
        (_JEQ, 0xFE800000, then, ""),
    ]
    choices = [packed for packed in (six, bytes(16) if unspecified else None) if packed]
    for number, packed in enumerate(choices):
        last = number == len(choices) - 1
        words = struct.unpack("!4I", packed)
        # A word that differs skips the rest of this choice: that many steps on, or to the end.
        for position, word in enumerate(words):
            rest = 2 * (len(words) - position - 1)
            miss = _DROP if last else f"+{rest}"
            steps.append((_LD_WORD, offset + 4 * position, "", ""))
            steps.append((_JEQ, word, "" if position < len(words) - 1 else then, miss))
    return steps if choices else [*steps, _goto(_DROP)]


def _at_least(length: int) -> list[Step]:
    """Drop a frame that is shorter: loads beyond its end would let it pass."""
    return [(_LD_LENGTH, 0, "", ""), (_JGE, length, "", _DROP)]


def _same(load: int, offset: int, value: int) -> list[Step]:
    return [(load, offset, "", ""), (_JEQ, value, "", _DROP)]


def _goto(label: str) -> Step:
    return (_JGE, 0, label, label)


def _word(packed: bytes) -> int:
    return int.from_bytes(packed, "big")


def _assemble(blocks: dict[str, list[Step]]) -> list[Instruction]:
    """Labels to distances: the number of instructions between a jump and its target."""
    places, position = {}, 0
    for label, steps in blocks.items():
        places[label] = position
        position += len(steps)
    instructions: list[Instruction] = []
    for steps in blocks.values():
        for code, k, *labels in steps:
            after = len(instructions) + 1
            jumps = []
            for label in labels:
                relative = not label or label.startswith("+")
                jumps.append(int(label or 0) if relative else places[label] - after)
            instructions.append(Instruction(code, k, *jumps))
    return instructions
