"""What the policies' table says about one connection, worked out from its rules as text.

For people (`nodelet net trace`) and for tests: an interpreter of exactly the expressions that
`agent.policy.rules` writes, in the words nft lists them. Pure.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from host.errors import InputError

BASE = "forward"


@dataclass(frozen=True)
class Flow:
    """A connection as conntrack knows it, and the packet of it that is judged (from the client, or back)."""

    client: str
    server: str
    protocol: str = "tcp"
    port: int = 80
    reply: bool = False
    tracked: bool = True

    @property
    def family(self) -> str:
        """ip or ip6."""
        return "ip6" if ":" in self.client else "ip"


@dataclass
class Rules:
    """A table: sets of elements, maps from keys to verdicts, chains of rules."""

    sets: dict[str, set[str]] = field(default_factory=dict)
    maps: dict[str, dict[str, str]] = field(default_factory=dict)
    chains: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Whether the packet passes; and the last chain it was in, with the policies that chain asks."""

    passes: bool
    chain: str
    policies: tuple[str, ...]


def parse(text: str) -> Rules:
    """A table from the output of `nft -y list table`."""
    found = Rules()
    kind, name = "", ""
    for line in re.sub(r",\s*\n\s*", ", ", text).splitlines():
        words = line.split()
        if len(words) > 2 and words[0] in ("set", "map", "chain", "counter") and words[-1] == "{":
            kind, name = words[0], words[1]
            if kind == "set":
                found.sets[name] = set()
            elif kind == "map":
                found.maps[name] = {}
            elif kind == "chain":
                found.chains[name] = []
        elif not words or words[0] in ("type", "table", "}"):
            continue
        elif kind == "chain":
            found.chains[name].append(line.strip())
        elif words[0] == "elements":
            listed = [e.strip() for e in line[line.index("{") + 1 : line.rindex("}")].split(",")]
            if kind == "set":
                found.sets[name] = set(listed)
            else:
                found.maps[name] = dict(element.split(" : ", 1) for element in listed)
    return found


def judge(rules: Rules, flow: Flow, base: str = BASE) -> Verdict:
    """What happens to a packet of the connection. Raises InputError for a rule that is not of our making."""
    end, chain = _walk(rules, base, flow)
    listed = (re.search(r'comment "([^"]*)"', rule) for rule in rules.chains[chain])
    return Verdict(end != "drop", chain, tuple(found[1] for found in listed if found))


def _walk(rules: Rules, chain: str, flow: Flow) -> tuple[str, str]:
    """("accept", "drop", or "" for the end of the chain; the chain where that was)."""
    for rule in rules.chains[chain]:
        words = shlex.split(re.sub(r"\{ | \}", "", rule.replace(", ", ",")))
        kind, _, target = _rule(rules, words, flow).partition(" ")
        if kind in ("accept", "drop"):
            return kind, chain
        if kind == "goto":
            return _walk(rules, target, flow)
        if kind == "jump":
            end, where = _walk(rules, target, flow)
            if end:
                return end, where
    return "", chain


def _rule(rules: Rules, words: Sequence[str], flow: Flow) -> str:
    """The verdict of one rule; "" where it does not match."""
    while words:
        if words[:2] == ["counter", "name"]:
            words = words[3:]
        if words[0] in ("accept", "drop"):
            return words[0]
        if words[0] in ("jump", "goto"):
            return " ".join(words[:2])
        value, words = _value(words, flow)
        if words[0] == ".":
            second, words = _value(words[1:], flow)
            value = None if value is None or second is None else f"{value} . {second}"
        if value is None:
            return ""
        if words[0] == "vmap":
            return rules.maps[words[1][1:]].get(value, "")
        negated = words[0] == "!="
        words = words[1:] if negated else words
        if _among(rules.sets, value, words[0]) == negated:
            return ""
        words = words[1:]
    return ""


def _value(words: Sequence[str], flow: Flow) -> tuple[str | None, Sequence[str]]:
    """What the expression at the front reads from the packet (None: nothing), and the words after it."""
    source, target = (flow.server, flow.client) if flow.reply else (flow.client, flow.server)
    match words:
        case ["ct", "state", *rest]:
            return ("established" if flow.tracked else "invalid"), rest
        case ["ct", end, ("ip" | "ip6") as family, "saddr", *rest]:
            address = flow.client if end == "original" else flow.server
            return (address if flow.tracked and family == flow.family else None), rest
        case ["ct", "reply", "proto-src", *rest]:
            return (str(flow.port) if flow.tracked else None), rest
        case [("ip" | "ip6") as family, ("saddr" | "daddr") as side, *rest]:
            return ((source if side == "saddr" else target) if family == flow.family else None), rest
        case ["meta", "l4proto", *rest]:
            return flow.protocol, rest
        case ["meta", "nfproto", *rest]:
            return ("ipv6" if flow.family == "ip6" else "ipv4"), rest
        case ["icmpv6", "type", *rest]:
            return None, rest
    raise InputError(f"a rule that is not nodelet's: {' '.join(words)[:80]}")


def _among(sets: Mapping[str, set[str]], value: str, wanted: str) -> bool:
    if wanted.startswith("@"):
        return value in sets[wanted[1:]]
    return any(_equals(value, one) for one in wanted.split(","))


def _equals(value: str, one: str) -> bool:
    """Whether a value is the one named: itself, a network or a range that has it."""
    if "/" in one:
        return ipaddress.ip_address(value) in ipaddress.ip_network(one)
    first, dash, last = one.partition("-")
    if dash and first.isdigit():
        return int(first) <= int(value) <= int(last)
    if dash and not first.isalpha():
        low, high, there = (ipaddress.ip_address(text) for text in (first, last, value))
        return int(low) <= int(there) <= int(high)
    return value == one
