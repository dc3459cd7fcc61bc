"""iptables through `iptables-restore` and `iptables-save`: one atomic transaction for each table changed.

Rules are text in the syntax of iptables-save(8), without the leading `-A CHAIN`, so that a reader can compare
what a planner renders with what the machine shows. Rendering, parsing and planning are pure; only `restore`,
`save` and what is built on them start a process, in the network namespace of the calling thread.

Not for: nft tables, ipset, and reading counters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from host import processes
from host.errors import HostError, InputError, NotFound

Family = Literal[4, 6]
Tables = dict[str, dict[str, list[str]]]
"""{table: {chain: [rule without '-A chain']}}, as `parse_save` gives it."""

_PREFIX: Mapping[Family, str] = {4: "iptables", 6: "ip6tables"}
_LOCK_SECONDS = "30"  # how long to wait for another program's xtables lock (legacy back end only)
_MAX_COMMENT = 255  # XT_MAX_COMMENT_LEN of linux/netfilter/xt_comment.h, less the NUL
_NOT_PLAIN = re.compile(r"""[^ -~]|["'\\]""")
_CHAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,27}")  # XT_EXTENSION_MAXNAMELEN less the NUL


@dataclass(frozen=True)
class Jump:
    """A rule in somebody else's chain, such as FORWARD, that leads into one of ours and exists exactly once.

    `rule` must end in `-j OUR-CHAIN`; every other rule of `chain` that jumps to OUR-CHAIN and is not the
    rule of another `Jump` counts as stale and is removed. `prepend` adds it at the top, not at the end.
    """

    table: str
    chain: str
    rule: str
    prepend: bool = False

    @property
    def target(self) -> str:
        """The chain of ours it leads to."""
        return target_of(self.rule)


@dataclass(frozen=True)
class TableChange:
    """What one table shall look like: the chains named here hold exactly these rules afterwards.

    `chains` maps a chain of ours to all its rules; `delete` names chains of ours that shall be gone (nothing
    may jump to them any more); `extra` are raw lines (`-A CHAIN …`, `-I …`, `-D …`) after the chains' rules.
    """

    table: str
    chains: Mapping[str, Sequence[str]] = field(default_factory=dict)
    delete: Sequence[str] = ()
    extra: Sequence[str] = ()


@dataclass(frozen=True)
class BackEnd:
    """Which kernel interface the machine's iptables speaks, and what the other one holds besides."""

    kind: Literal["nft", "legacy"]
    version: str
    other_rules: int
    """Rules found through the other interface; more than 0 means two sets of rules judge each packet."""


def target_of(rule: str) -> str:
    """What a rule jumps or goes to ('' for none)."""
    words = rule.split()
    for flag in ("-j", "-g", "--jump", "--goto"):
        if flag in words[:-1]:
            return words[words.index(flag) + 1]
    return ""


def quote(comment: str) -> str:
    """A comment as one quoted word: printable ASCII, at most 255 bytes, no quotes or backslashes."""
    return f'"{_NOT_PLAIN.sub("?", comment)[:_MAX_COMMENT]}"'


def chain_name(name: str) -> str:
    """`name` itself. Raises InputError unless it is a chain name the kernel takes (28 plain characters)."""
    if not _CHAIN.fullmatch(name):
        raise InputError(f"not a chain name: {name[:60]!r} (1 to 28 of A-Z a-z 0-9 _ . -)")
    return name


def render(changes: Iterable[TableChange]) -> str:
    """The input of `iptables-restore --noflush` for these changes; '' when there are none. Pure."""
    lines: list[str] = []
    for change in changes:
        lines.append(f"*{change.table}")
        lines += [f":{chain_name(chain)} - [0:0]" for chain in (*change.chains, *change.delete)]
        for chain, rules in change.chains.items():
            lines += [f"-A {chain} {rule}" for rule in rules]
        lines += change.extra
        lines += [f"-X {chain}" for chain in change.delete]
        lines.append("COMMIT")
    if any("\n" in line or "\0" in line for line in lines):
        raise InputError("an iptables rule must not contain a line break")
    return "\n".join(lines) + "\n" if lines else ""


def restore(text: str | bytes, *, family: Family = 4, noflush: bool = True, timeout: float = 60.0) -> None:
    """Apply `text` with `iptables-restore -w`, each table all or nothing.

    Raises:
        ProcessFailed: with the program's own words; no table after the failing one was changed.
        NotFound: iptables is not installed.
    """
    if text:
        processes.run(_restore_argv(family, noflush), input=_encoded(text), timeout=timeout)


async def restore_async(
    text: str | bytes, *, family: Family = 4, noflush: bool = True, timeout: float = 60.0
) -> None:
    """As `restore`, without blocking the event loop."""
    from host import helpers  # brings asyncio, which a CNI plugin that uses this module has no time for

    if text:
        await helpers.run_async(_restore_argv(family, noflush), input=_encoded(text), timeout=timeout)


def _restore_argv(family: Family, noflush: bool) -> list[str]:
    return [f"{_PREFIX[family]}-restore", "-w", _LOCK_SECONDS, *(["--noflush"] if noflush else [])]


def _encoded(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def save(table: str = "", *, family: Family = 4, counters: bool = False) -> str:
    """The text of `iptables-save`, of one table or of all ('' where the kernel has no such table yet).

    Raises:
        ProcessFailed: the program failed.
        NotFound: iptables is not installed.
    """
    argv = [f"{_PREFIX[family]}-save", *(["-t", table] if table else []), *(["-c"] if counters else [])]
    return processes.run(argv).stdout.decode(errors="replace")


def parse_save(text: str) -> Tables:
    """`iptables-save` output (with or without counters) as tables of chains of rules. Pure."""
    tables: Tables = {}
    current: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            current = tables.setdefault(line[1:].strip(), {})
        elif line.startswith(":"):
            current.setdefault(line[1:].split()[0], [])
        else:
            rule = re.sub(r"^\[\d+:\d+\] ", "", line)
            if rule.startswith("-A "):
                chain, _, rest = rule[3:].partition(" ")
                current.setdefault(chain, []).append(rest)
    return tables


def plan(changes: Sequence[TableChange], jumps: Sequence[Jump], present: Tables) -> list[TableChange]:
    """The smallest change of `present` after which chains and jumps are as wanted; [] when they are. Pure.

    Rules are compared as text: one that is not written as iptables-save writes it is simply set again.
    """
    wanted = {change.table: change for change in changes}
    result = []
    for table in dict.fromkeys([*wanted, *(jump.table for jump in jumps)]):
        change, there = wanted.get(table, TableChange(table)), present.get(table, {})
        chains = {name: rules for name, rules in change.chains.items() if list(rules) != there.get(name)}
        delete = [name for name in change.delete if name in there]
        extra = list(change.extra) + _plan_jumps([j for j in jumps if j.table == table], there)
        if chains or delete or extra:
            result.append(TableChange(table, chains, delete, extra))
    return result


def _plan_jumps(jumps: Sequence[Jump], there: Mapping[str, Sequence[str]]) -> list[str]:
    lines = []
    wanted = {(jump.chain, jump.rule) for jump in jumps}
    for chain, target in dict.fromkeys((jump.chain, jump.target) for jump in jumps):
        seen: set[str] = set()
        for rule in there.get(chain, ()):
            if target_of(rule) == target:
                if rule in seen or (chain, rule) not in wanted:
                    lines.append(f"-D {chain} {rule}")
                seen.add(rule)
    for jump in jumps:
        if jump.rule not in there.get(jump.chain, ()):
            lines.append(f"{'-I' if jump.prepend else '-A'} {jump.chain} {jump.rule}")
    return lines


def read_chain(table: str, chain: str, *, family: Family = 4) -> list[str] | None:
    """The rules of one chain, or None where it does not exist.

    About 3 ms with the nft back end, however many rules other chains of the table have; that is what makes
    it fit for repeated checks, as `save` is not.

    Raises:
        NotFound: iptables is not installed.
    """
    argv = [_PREFIX[family], "-w", _LOCK_SECONDS, "-t", table, "-S", chain_name(chain)]
    done = processes.run(argv, check=False)
    if done.returncode != 0:
        return None
    lines = done.stdout.decode(errors="replace").splitlines()
    return [line.removeprefix(f"-A {chain} ") for line in lines if line.startswith("-A ")]


def ensure(changes: Sequence[TableChange], jumps: Sequence[Jump] = (), *, family: Family = 4) -> bool:
    """Make chains hold exactly these rules and jumps exist exactly once; True when something was written.

    Reads only the chains concerned and writes only differences, so it may be repeated at will.

    Raises:
        ProcessFailed: iptables refused.
        NotFound: iptables is not installed.
    """
    concerned = [(change.table, chain) for change in changes for chain in (*change.chains, *change.delete)]
    concerned += [(jump.table, jump.chain) for jump in jumps]
    present: Tables = {}
    for table, chain in dict.fromkeys(concerned):
        rules = read_chain(table, chain, family=family)
        if rules is not None:
            present.setdefault(table, {})[chain] = rules
    text = render(plan(changes, jumps, present))
    restore(text, family=family)
    return bool(text)


def plan_removal(chains: Mapping[str, Sequence[str]], present: Tables) -> list[TableChange]:
    """The change that removes chains ({table: [chain]}) and every rule that leads to them. Pure."""
    result = []
    for table, names in chains.items():
        there = present.get(table, {})
        delete = [name for name in names if name in there]
        extra = [
            f"-D {chain} {rule}"
            for chain, rules in there.items()
            for rule in rules
            if chain not in delete and target_of(rule) in delete
        ]
        if delete:
            result.append(TableChange(table, delete=delete, extra=extra))
    return result


def remove(chains: Mapping[str, Sequence[str]], *, family: Family = 4) -> None:
    """Remove chains ({table: [chain]}) and every rule that leads to them; what is gone already is success."""
    present: Tables = {}
    for table in chains:
        present.update(parse_save(save(table, family=family)))
    restore(render(plan_removal(chains, present)), family=family)


def back_end() -> BackEnd:
    """Which back end `iptables` uses here, and whether the other one holds rules too (costs about 20 ms)."""
    version = processes.run(["iptables", "--version"]).stdout.decode(errors="replace").strip()
    kind: Literal["nft", "legacy"] = "nft" if "nf_tables" in version else "legacy"
    other = "iptables-legacy-save" if kind == "nft" else "iptables-nft-save"
    try:
        text = processes.run([other]).stdout.decode(errors="replace")
    except NotFound:
        text = ""  # only one of the two is installed
    except HostError:
        text = ""  # the kernel was built without the other interface
    rules = sum(len(rules) for chains in parse_save(text).values() for rules in chains.values())
    return BackEnd(kind, version, rules)
