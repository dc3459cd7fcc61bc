"""Rules wanted against rules present: the transactions that lead from one to the other.

Two ways in. `partial` compares what a few Services need with what was last written for them, and so costs
what changed, not what exists. `full` compares everything with what the kernel says, after a start, a failure
or a flush; it repairs and tidies, and yields nothing when all is well.

Order, in both: new chains before the rules that lead to them; rules that lead nowhere any more before the
chains they led to. So a packet never meets a rule whose target is not filled yet.

Batches: with the nft back end iptables-restore takes time quadratic in the number of chains in one
transaction (measured, 1.8.9: 40,000 chains at once 96 s, in batches of 1,000 4.5 s), so a big change becomes
several transactions in that same order. What already worked works all the time. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agent.services import rules
from agent.services.rules import Rule, ServiceRules, Settings
from host.rules import iptables
from host.rules.iptables import TableChange, Tables

TABLES = ("filter", "nat")
BATCH = 1000
"""Chains (or appended rules) in one transaction."""
_DELETE_ORDER = ("KUBE-FW-", "KUBE-EXT-", "KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-")
_SMALL = 200
"""A shared chain with at most this many differences is edited, one with more is written anew."""


@dataclass
class _Batch:
    """One transaction in the making; a table's chains come before its extra lines, those before deletions."""

    size: int = 0
    chains: dict[str, dict[str, Sequence[Rule]]] = field(default_factory=lambda: {t: {} for t in TABLES})
    extra: dict[str, list[str]] = field(default_factory=lambda: {t: [] for t in TABLES})
    delete: dict[str, list[str]] = field(default_factory=lambda: {t: [] for t in TABLES})

    def add(self, change: TableChange) -> None:
        self.size += _size(change)
        self.chains[change.table].update(change.chains)
        self.extra[change.table].extend(change.extra)
        self.delete[change.table].extend(change.delete)

    def text(self) -> str:
        changes = [
            TableChange(table, self.chains[table], self.delete[table], self.extra[table])
            for table in TABLES
            if self.chains[table] or self.extra[table] or self.delete[table]
        ]
        return iptables.render(changes)


def _size(change: TableChange) -> int:
    return len(change.chains) + len(change.extra) + len(change.delete)


def pack(steps: Iterable[TableChange], *, limit: int | None = BATCH) -> list[str]:
    """Steps in order as inputs of iptables-restore, as few as `limit` allows (None: one).

    A step is never divided. Steps packed together are one transaction for each table, filter first: traffic
    to an address that loses its last endpoint is rejected before it stops being translated.
    """
    batches = [_Batch()]
    for step in steps:
        if limit is not None and batches[-1].size and batches[-1].size + _size(step) > limit:
            batches.append(_Batch())
        batches[-1].add(step)
    return [text for batch in batches if (text := batch.text())]


def partial(old: Mapping[str, ServiceRules], new: Mapping[str, ServiceRules]) -> list[TableChange]:
    """The steps that turn the rules of some Services into others.

    Args:
        old: what was last written for them, by key.
        new: what they need now; a missing key needs nothing.
    """
    steps = []
    nothing = ServiceRules()
    for key in {**old, **new}:
        before, after = old.get(key, nothing), new.get(key, nothing)
        if before == after:
            continue
        changed = {
            chain: wanted for chain, wanted in after.chains.items() if before.chains.get(chain) != wanted
        }
        gone = [chain for chain in before.chains if chain not in after.chains]
        present, wanted_shared = set(before.shared), set(after.shared)
        lines: dict[str, list[str]] = {table: [] for table in TABLES}
        for table, chain, rule in before.shared:
            if (table, chain, rule) not in wanted_shared:
                lines[table].append(f"-D {chain} {rule}")
        for table, chain, rule in after.shared:
            if (table, chain, rule) not in present:
                lines[table].append(f"-I {chain} {rule}")
        if lines["filter"]:
            steps.append(TableChange("filter", extra=lines["filter"]))
        steps.append(TableChange("nat", changed, _in_delete_order(gone), lines["nat"]))
    return steps


def full(present: Tables, services: Mapping[str, ServiceRules], settings: Settings) -> Iterator[TableChange]:
    """The steps that make the kernel hold exactly what is wanted.

    Args:
        present: {table: {chain: rules}} as the kernel has them; other people's chains are left alone.
        services: what every Service needs.
        settings: for the chains that belong to no Service.
    """
    for table, chains in rules.fixed_chains(settings).items():
        there = present.get(table, {})
        missing = {chain: () for chain in rules.SHARED_CHAINS[table] if chain not in there}
        changed = {chain: wanted for chain, wanted in chains.items() if there.get(chain) != list(wanted)}
        if missing or changed:
            yield TableChange(table, {**changed, **missing})
    nat = present.get("nat", {})
    for service in services.values():
        chains = {chain: wanted for chain, wanted in service.chains.items() if nat.get(chain) != list(wanted)}
        if chains:
            yield TableChange("nat", chains)
    yield from _shared(present, services, settings)
    yield from iptables.plan([], rules.jumps(), present)
    yield from _stale(present, services)


def _shared(
    present: Tables, services: Mapping[str, ServiceRules], settings: Settings
) -> Iterator[TableChange]:
    wanted: dict[tuple[str, str], list[Rule]] = {
        (table, chain): [] for table in TABLES for chain in rules.SHARED_CHAINS[table]
    }
    for service in services.values():
        for table, chain, rule in service.shared:
            wanted[table, chain].append(rule)
    for (table, chain), body in wanted.items():
        end = rules.last_rules(settings) if (table, chain) == ("nat", rules.SERVICES) else ()
        yield from _shared_chain(table, chain, body, end, present.get(table, {}).get(chain, []))


def _shared_chain(
    table: str, chain: str, body: Sequence[Rule], end: Sequence[Rule], there: Sequence[Rule]
) -> Iterator[TableChange]:
    """One shared chain. The order of its rules means nothing, but for those that must be at the end."""
    if not there:
        for rule in (*body, *end):
            yield TableChange(table, extra=[f"-A {chain} {rule}"])
        return
    present, desired = set(there), {*body, *end}
    ends_well = not end or tuple(there[-len(end) :]) == tuple(end)
    if len(present) != len(there) or not ends_well or len(present ^ desired) > _SMALL:
        if list(there) != [*body, *end]:
            yield TableChange(table, {chain: [*body, *end]})
        return
    lines = [f"-D {chain} {rule}" for rule in there if rule not in desired]
    lines += [f"-I {chain} {rule}" for rule in body if rule not in present]
    if lines:
        yield TableChange(table, extra=lines)


def _stale(present: Tables, services: Mapping[str, ServiceRules]) -> Iterator[TableChange]:
    wanted = {chain for service in services.values() for chain in service.chains}
    nat = present.get("nat", {})
    stale = [chain for chain in nat if chain.startswith(rules.OWN_PREFIXES) and chain not in wanted]
    for chain in _in_delete_order(stale):
        yield TableChange("nat", delete=[chain])


def _in_delete_order(chains: Iterable[str]) -> list[str]:
    """Chains that lead to others before those."""

    def rank(chain: str) -> int:
        return next(index for index, prefix in enumerate(_DELETE_ORDER) if chain.startswith(prefix))

    return sorted(chains, key=rank)


def removal(present: Tables) -> Iterator[TableChange]:
    """The steps that take away everything of ours and nothing else, for --cleanup and after a change of mode.

    First what leads to our chains, then the chains of Services, then the chains that all Services shared.
    """
    fixed = {
        "filter": {*rules.SHARED_CHAINS["filter"], rules.FORWARD, rules.CANARY},
        "nat": {*rules.SHARED_CHAINS["nat"], rules.MARK_MASQ, rules.POSTROUTING, rules.CANARY},
    }
    for table in TABLES:
        there = present.get(table, {})
        ours = {chain for chain in there if chain in fixed[table]}
        jumps = [
            f"-D {chain} {rule}"
            for chain, body in there.items()
            for rule in body
            if not chain.startswith("KUBE-") and iptables.target_of(rule) in ours
        ]
        if ours:
            yield TableChange(table, {chain: () for chain in ours}, extra=jumps)
    yield from _stale(present, {})
    for table in TABLES:
        ours = fixed[table] & present.get(table, {}).keys()
        if ours:
            yield TableChange(table, delete=sorted(ours))
