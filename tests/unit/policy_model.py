"""An nftables that behaves, in memory, and a packet that walks through the policies' table.

`FakeNft.apply` takes the transactions our code renders, all or nothing, and refuses what the kernel refuses:
a rule that uses what is not there, deleting what is used or not there, two values for one key. `passes`
answers the only question that matters.
"""

from __future__ import annotations

import copy
import errno
from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.policy import rules, verdict
from agent.policy.verdict import Flow, Rules
from host.errors import HostError
from host.rules.nft import Content
from host.rules.nftelements import Change


@dataclass
class _Table:
    sets: dict[str, set[str]] = field(default_factory=dict)
    maps: dict[str, dict[str, str]] = field(default_factory=dict)
    chains: dict[str, list[str]] = field(default_factory=dict)
    base: str = ""
    hook: str = ""

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

    def write(self, text: str, *, whole: Content | None = None) -> None:
        self.texts.append(text)
        if self.failures:
            self.failures -= 1
            raise HostError(errno.EIO, "nft", "told to fail")
        work = copy.deepcopy(self.table)
        for line in text.splitlines():
            work = self._do(work, line)
        self.table = work

    apply = write

    def write_elements(self, changes: Sequence[Change]) -> None:
        ordered = sorted(changes, key=lambda change: not change.remove)
        lines = (
            f"{'delete' if one.remove else 'add'} element inet {rules.TABLE} {one.name} "
            f"{{ {one.element.partition(' : ')[0] if one.remove else one.element} }}\n"
            for one in ordered
        )
        self.write("".join(lines))

    def touched(self) -> bool:
        return self.meddled

    def differs(self, wanted: Content | None) -> str:
        self.meddled = False
        return "" if wanted == self.content else "differs"

    def dropped(self) -> int:
        return 7

    def filter_bridge(self) -> str:
        return ""

    @property
    def content(self) -> Content | None:
        if self.table is None:
            return None
        sets = {name: frozenset(elements) for name, elements in self.table.sets.items()}
        maps = {n: frozenset(f"{k} : {v}" for k, v in m.items()) for n, m in self.table.maps.items()}
        hook = {self.table.base: (self.table.hook,)} if self.table.base else {}
        chains = {name: (*hook.get(name, ()), *rules) for name, rules in self.table.chains.items()}
        return Content({**sets, **maps}, chains)

    def _do(self, table: _Table | None, line: str) -> _Table | None:
        verb, kind, _family, _table, *rest = line.split(" ", 4)
        body = rest[0] if rest else ""
        if kind == "counter":
            return table
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
            if "hook" in more:
                table.base, table.hook = name, more.strip("{} ")
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
    rules = Rules(fake.table.sets, fake.table.maps, fake.table.chains)
    return verdict.judge(rules, flow, fake.table.base).passes
