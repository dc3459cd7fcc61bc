"""nftables through `nft -f -`: one table of ours, written in atomic transactions, and read back to compare.

`TableState` is what one table shall hold, with a memory of what changed since it was last written. It renders
either the whole table (which replaces the old one in one transaction, without a gap) or only the changes, so
that one element more costs one line of input however large the table is. Rendering and parsing are pure; only
`apply` and `read` touch the kernel, in the network namespace of the calling thread.

Rules, types and elements are text in the syntax of nft(8). Elements of a map are `key : value`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from host import processes
from host.errors import InputError
from host.processes import ProcessFailed
from host.rules.nftelements import Change

Family = Literal["inet", "ip", "ip6", "bridge"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_/-]{0,127}")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9 ._:/=,-]")
_ANONYMOUS = re.compile(r"\{ ([^{}]*) \}")
_MAX_COMMENT = 127  # NFTNL_UDATA_COMMENT_MAXLEN of libnftnl, less the NUL


@dataclass(frozen=True)
class Content:
    """What a table holds, in a form that is the same for what is wanted and for what was read.

    Rules are text, a base chain's declaration is its first: so they must be written as nft lists them. Where
    another release of nft has other words, who compares has to learn them.
    """

    sets: Mapping[str, frozenset[str]] = field(default_factory=dict)
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class _Set:
    type: str
    counts: Counter[str] = field(default_factory=Counter)


def quote(comment: str) -> str:
    """A comment as one quoted word: plain characters only, at most 127 of them."""
    return f'"{_NOT_PLAIN.sub("?", comment)[:_MAX_COMMENT]}"'


class TableState:
    """What one table shall hold.

    Elements are counted: one that was added twice is there until it was removed twice, as when two owners
    have the same address for a moment.

    Args:
        family, name: of the table.
    """

    def __init__(self, family: Family, name: str) -> None:
        self.family, self.name = family, _checked(name)
        self._counters: list[str] = []
        self._sets: dict[str, _Set] = {}
        self._chains: dict[str, tuple[str, ...]] = {}
        self._written_sets: dict[str, str] = {}
        self._written_chains: dict[str, tuple[str, ...]] = {}
        self._touched: dict[str, dict[str, bool]] = {}  # set: {element: whether it has been written}

    # --- what is wanted -----------------------------------------------------------------------------------

    def put_chain(self, name: str, rules: Iterable[str], *, hook: str = "") -> None:
        """Let a chain hold exactly these rules; `hook` is the declaration of a base chain."""
        self._chains[_checked(name)] = (hook, *rules)

    def put_counter(self, name: str) -> None:
        """Let a counter exist, for rules to name; before the table is first written."""
        self._counters.append(_checked(name))

    def drop_chain(self, name: str) -> None:
        """Let a chain be gone; rules and maps must not lead to it any more."""
        del self._chains[name]

    def put_set(self, name: str, type: str) -> None:
        """Let a set (or, with a type like `ipv4_addr : verdict`, a map) exist; its elements stay."""
        self._sets.setdefault(_checked(name), _Set(type))

    def drop_set(self, name: str) -> None:
        """Let a set be gone with its elements; rules must not use it any more."""
        touched = self._touched.setdefault(name, {})  # in case it comes back before the next write
        for element in self._sets.pop(name).counts:
            touched.setdefault(element, True)

    def add(self, name: str, element: str) -> None:
        """One owner more of an element."""
        counts = self._sets[name].counts
        self._touched.setdefault(name, {}).setdefault(element, counts[element] > 0)
        counts[element] += 1

    def remove(self, name: str, element: str) -> None:
        """One owner less of an element; without any it is gone."""
        counts = self._sets[name].counts
        self._touched.setdefault(name, {}).setdefault(element, counts[element] > 0)
        counts[element] -= 1
        if counts[element] <= 0:
            del counts[element]

    def chain(self, name: str) -> tuple[str, ...] | None:
        """The rules of a chain as wanted, None when there is none."""
        chain = self._chains.get(name)
        return chain[1:] if chain is not None else None

    @property
    def content(self) -> Content:
        """All of it, to compare with what `read` gives."""
        return Content(
            {name: frozenset(one.counts) for name, one in self._sets.items()},
            {name: _canonical(chain) for name, chain in self._chains.items()},
        )

    @property
    def rules(self) -> int:
        """How many rules it shall hold."""
        return sum(len(chain) - 1 for chain in self._chains.values())

    def elements(self, name: str) -> frozenset[str]:
        """The elements of one set as wanted."""
        return frozenset(self._sets[name].counts)

    # --- how to get there ---------------------------------------------------------------------------------

    def whole(self) -> str:
        """The transaction that makes the table anew, whatever it holds."""
        # The first line lets the second succeed where there is no such table.
        lines = [f"add table {self._where}", f"delete table {self._where}", f"add table {self._where}"]
        lines += [f"add counter {self._where} {name}" for name in self._counters]
        lines += [_declare_set(self._where, name, one.type) for name, one in self._sets.items()]
        lines += [_declare_chain(self._where, name, chain[0]) for name, chain in self._chains.items()]
        for name, chain in self._chains.items():
            lines += [f"add rule {self._where} {name} {rule}" for rule in chain[1:]]
        for name, one in self._sets.items():
            lines += _elements("add", self._where, name, one.counts)
        return _joined(lines)

    def changes(self) -> str:
        """The transaction from what was written last to what is wanted; "" when nothing changed.

        In the order in which nothing is used before it is made, or removed while it is used: sets, chains,
        their rules, elements, and then the removals.
        """
        old_sets, old_chains = self._written_sets, self._written_chains
        renewed = {name for name, one in self._sets.items() if old_sets.get(name, one.type) != one.type}
        if renewed:
            return self.whole()  # a set does not change its type: start afresh
        where, lines = self._where, []
        fresh = [name for name in self._sets if name not in old_sets]
        lines += [_declare_set(where, name, self._sets[name].type) for name in fresh]
        lines += [_declare_chain(where, n, c[0]) for n, c in self._chains.items() if n not in old_chains]
        for name, chain in self._chains.items():
            before = old_chains.get(name)
            if before is not chain and before != chain:
                lines += [f"flush chain {where} {name}"] if before is not None else []
                lines += [f"add rule {where} {name} {rule}" for rule in chain[1:]]
        for name, touched in self._touched.items():
            if name not in self._sets:
                continue
            there = self._sets[name].counts
            was = {element: name in old_sets and written for element, written in touched.items()}
            lines += _elements("delete", where, name, [e for e, w in was.items() if w and e not in there])
            lines += _elements("add", where, name, [e for e, w in was.items() if not w and e in there])
        gone = [name for name in old_chains if name not in self._chains]
        lines += [f"flush chain {where} {name}" for name in gone]
        lines += [f"delete chain {where} {name}" for name in gone]
        lines += [f"delete set {where} {name}" for name in old_sets if name not in self._sets]
        return _joined(lines)

    def element_changes(self) -> list[Change] | None:
        """The same as elements, where nothing but elements changed; None where something else did."""
        if self._written_sets.keys() != self._sets.keys() or any(
            self._written_sets[name] != one.type for name, one in self._sets.items()
        ):
            return None
        old = self._written_chains
        if old.keys() != self._chains.keys() or any(
            old[name] is not chain and old[name] != chain for name, chain in self._chains.items()
        ):
            return None
        changes = []
        for name, touched in self._touched.items():
            there = self._sets[name].counts
            changes += [Change(name, e, remove=True) for e, was in touched.items() if was and e not in there]
            changes += [Change(name, e) for e, was in touched.items() if not was and e in there]
        return changes

    def mark_written(self) -> None:
        """The kernel holds what is wanted now."""
        self._written_sets = {name: one.type for name, one in self._sets.items()}
        self._written_chains = dict(self._chains)
        self._touched = {}

    @property
    def removal(self) -> str:
        """The transaction after which there is no such table."""
        return _joined([f"add table {self._where}", f"delete table {self._where}"])

    @property
    def _where(self) -> str:
        return f"{self.family} {self.name}"


def _canonical(chain: Iterable[str]) -> tuple[str, ...]:
    """Without an empty declaration, and with the members of anonymous sets in a fixed order."""
    return tuple(_ANONYMOUS.sub(_sorted_set, rule) if "{" in rule else rule for rule in chain if rule)


def _sorted_set(found: re.Match[str]) -> str:
    return "{ " + ", ".join(sorted(found[1].split(", "))) + " }"


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(f"not a name nft takes: {name[:60]!r}")
    return name


def _declare_set(where: str, name: str, type: str) -> str:
    return f"add {'map' if ' : ' in type else 'set'} {where} {name} {{ type {type}; }}"


def _declare_chain(where: str, name: str, hook: str) -> str:
    return f"add chain {where} {name} {{ {hook} }}" if hook else f"add chain {where} {name}"


def _elements(verb: str, where: str, name: str, elements: Iterable[str]) -> list[str]:
    # An element of a map is deleted by its key.
    listed = [element.partition(" : ")[0] if verb == "delete" else element for element in elements]
    return [f"{verb} element {where} {name} {{ {', '.join(listed)} }}"] if listed else []


def _joined(lines: list[str]) -> str:
    if any("\n" in line or "\0" in line for line in lines):
        raise InputError("an nft rule must not contain a line break")
    return "\n".join(lines) + "\n" if lines else ""


def parse(text: str) -> Content:
    """The content of a table in the output of `nft -y list table`. Pure."""
    sets: dict[str, frozenset[str]] = {}
    chains: dict[str, list[str]] = {}
    name, kind = "", ""
    joined = re.sub(r",\s*\n\s*", ", ", text)  # elements are broken into lines of two or three
    for line in joined.splitlines():
        words = line.split()
        if words[:1] in (["set"], ["map"], ["chain"], ["counter"]) and words[-1] == "{":
            kind, name = words[0], words[1]
            if kind == "chain":
                chains[name] = []
            elif kind != "counter":
                sets[name] = frozenset()
        elif not words or words[0] in ("table", "comment", "}"):
            continue
        elif kind == "chain":
            chains[name].append(line.strip())
        elif words[0] == "elements":
            listed = line[line.index("{") + 1 : line.rindex("}")]
            sets[name] = frozenset(element.strip() for element in listed.split(","))
    return Content(sets, {name: _canonical(rules) for name, rules in chains.items()})


def apply(text: str, *, timeout: float = 60.0) -> None:
    """Apply a transaction, all or nothing.

    Raises:
        ProcessFailed: with nft's own words; nothing was changed.
        NotFound: nft is not installed.
    """
    if text:
        processes.run(["nft", "-f", "-"], input=text.encode(), timeout=timeout)


def read(family: Family, name: str) -> Content | None:
    """What a table holds, None where there is none.

    Raises:
        ProcessFailed, NotFound: as `apply`.
    """
    try:
        done = processes.run(["nft", "-y", "list", "table", family, _checked(name)])
    except ProcessFailed as exc:
        if "No such file or directory" in exc.stderr:
            return None
        raise
    return parse(done.stdout.decode(errors="replace"))
