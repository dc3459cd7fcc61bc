"""An nftables that behaves, in memory, and a packet that walks through the policies' table.

`FakeNft.apply` takes the transactions our code renders, all or nothing, and refuses what the kernel refuses:
a rule that uses what is not there, deleting what is used or not there, two values for one key. `passes`
answers the only question that matters.
"""

from __future__ import annotations

import copy
import errno
import ipaddress
import re
import shlex
from dataclasses import dataclass, field

from host.errors import HostError
from host.rules.nft import Content


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
        return "ip6" if ":" in self.client else "ip"


@dataclass
class _Table:
    sets: dict[str, set[str]] = field(default_factory=dict)
    maps: dict[str, dict[str, str]] = field(default_factory=dict)
    chains: dict[str, list[str]] = field(default_factory=dict)
    base: str = ""

    def used(self, name: str) -> bool:
        words = [word for rules in self.chains.values() for rule in rules for word in rule.split()]
        values = [
            word for values in self.maps.values() for value in values.values() for word in value.split()
        ]
        return name in words or f"@{name}" in words or name in values


class FakeNft:
    """`agent.policy.kernel.Kernel` over dictionaries. `failures` makes so many writes fail."""

    def __init__(self) -> None:
        self.table: _Table | None = None
        self.texts: list[str] = []
        self.failures = 0
        self.meddled = False

    def write(self, text: str) -> None:
        self.texts.append(text)
        if self.failures:
            self.failures -= 1
            raise HostError(errno.EIO, "nft", "told to fail")
        work = copy.deepcopy(self.table)
        for line in text.splitlines():
            work = self._do(work, line)
        self.table = work

    apply = write

    def touched(self) -> bool:
        return self.meddled

    def differs(self, wanted: Content | None) -> str:
        self.meddled = False
        return "" if wanted == self.content else "differs"

    def filter_bridge(self) -> str:
        return ""

    @property
    def content(self) -> Content | None:
        if self.table is None:
            return None
        sets = {name: frozenset(elements) for name, elements in self.table.sets.items()}
        maps = {n: frozenset(f"{k} : {v}" for k, v in m.items()) for n, m in self.table.maps.items()}
        return Content({**sets, **maps}, {name: len(rules) for name, rules in self.table.chains.items()})

    def _do(self, table: _Table | None, line: str) -> _Table | None:
        verb, kind, _family, _table, *rest = line.split(" ", 4)
        body = rest[0] if rest else ""
        if kind == "table":
            refuse(verb == "delete" and table is None, line)
            return (table or _Table()) if verb == "add" else None
        refuse(table is None, line)
        assert table is not None
        name, _, more = body.partition(" ")
        {
            "chain": self._chain,
            "rule": self._rule,
            "set": self._set,
            "map": self._set,
            "element": self._element,
        }[kind](table, verb, name, more, line)
        return table

    def _chain(self, table: _Table, verb: str, name: str, more: str, line: str) -> None:
        if verb == "add":
            refuse(name in table.chains, line)
            table.chains[name] = []
            table.base = name if "hook" in more else table.base
        elif verb == "flush":
            table.chains[name].clear()
        else:
            refuse(bool(table.chains[name]) or table.used(name), line)
            del table.chains[name]

    def _rule(self, table: _Table, verb: str, name: str, more: str, line: str) -> None:
        known = {*table.chains, *(f"@{one}" for one in (*table.sets, *table.maps))}
        words = more.split()
        for before, word in zip(["", *words], words, strict=False):
            refuse((before in ("jump", "goto") or word.startswith("@")) and word not in known, line)
        table.chains[name].append(more)

    def _set(self, table: _Table, verb: str, name: str, more: str, line: str) -> None:
        if verb == "add":
            refuse(name in table.sets or name in table.maps, line)
            (table.maps if " : " in more else table.sets)[name] = {} if " : " in more else set()  # type: ignore
        else:
            refuse(table.used(name), line)
            del (table.sets if name in table.sets else table.maps)[name]

    def _element(self, table: _Table, verb: str, name: str, more: str, line: str) -> None:
        for element in more.strip("{} ").split(", "):
            key, _, value = element.partition(" : ")
            if name in table.sets:
                elements = table.sets[name]
                refuse((verb == "delete") != (key in elements), line)
                (elements.discard if verb == "delete" else elements.add)(key)
            else:
                values = table.maps[name]
                refuse((verb == "delete") != (key in values), line)
                if verb == "delete":
                    del values[key]
                else:
                    refuse(value.split()[-1] not in table.chains, line)
                    values[key] = value


def refuse(wrong: bool, line: str) -> None:
    if wrong:
        raise HostError(errno.EINVAL, "nft", line)


def passes(fake: FakeNft, flow: Flow) -> bool:
    """Whether the table lets a packet of this connection through."""
    if fake.table is None:
        return True
    return _walk(fake.table, fake.table.base, flow) != "drop"


def _walk(table: _Table, chain: str, flow: Flow) -> str:
    """ "accept", "drop", or "" for the end of the chain."""
    for rule in table.chains[chain]:
        verdict = _rule_verdict(table, shlex.split(re.sub(r"\{ | \}", "", rule.replace(", ", ","))), flow)
        kind, _, target = verdict.partition(" ")
        if kind in ("accept", "drop"):
            return kind
        if kind == "goto":
            return _walk(table, target, flow)
        if kind == "jump" and (inner := _walk(table, target, flow)):
            return inner
    return ""


def _rule_verdict(table: _Table, words: list[str], flow: Flow) -> str:
    """The verdict of one rule; "" where it does not match."""
    while words:
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
            return table.maps[words[1][1:]].get(value, "")
        wanted = words[1] if words[0] == "!=" else words[0]
        if _among(table, value, wanted) == (words[0] == "!="):
            return ""
        words = words[2:] if words[0] == "!=" else words[1:]
    return ""


def _value(words: list[str], flow: Flow) -> tuple[str | None, list[str]]:
    """What the expression at the front reads from the packet, and the words after it."""
    source, target = (flow.server, flow.client) if flow.reply else (flow.client, flow.server)
    match words:
        case ["ct", "state", *rest]:
            return ("tracked" if flow.tracked else "invalid"), rest
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
            return {"ip": "ipv4", "ip6": "ipv6"}[flow.family], rest
        case ["icmpv6", "type", *rest]:
            return None, rest
    raise AssertionError(f"an expression this model does not know: {words}")


def _among(table: _Table, value: str, wanted: str) -> bool:
    if wanted.startswith("@"):
        return value in table.sets[wanted[1:]]
    for one in wanted.split(","):
        if "/" in one:
            if ipaddress.ip_address(value) in ipaddress.ip_network(one):
                return True
        elif re.fullmatch(r"\d+-\d+", one):
            first, last = map(int, one.split("-"))
            if first <= int(value) <= last:
                return True
        elif value == one:
            return True
    return False
