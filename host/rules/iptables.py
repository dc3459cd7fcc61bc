"""iptables through `iptables-restore` and `iptables-save`: one atomic transaction for each change.

Rules are plain text lines in the syntax of iptables-save(8), so that a reader can compare what a planner
renders with what the machine shows. Rendering is pure (`render`); `restore` and `save` are the only
functions here that start a process.

Not for: nft tables (host.rules.nft) and ipset (host.rules.ipset).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Family = Literal[4, 6]


@dataclass(frozen=True)
class Jump:
    """A rule in a built-in chain (or in anybody's chain) that must exist exactly once.

    `rule` is the rule without `-A chain`, e.g. `-m comment --comment "pods" -j NODELET-POSTRTG`.
    `prepend` puts it at the top instead of the end when it has to be added.
    """

    table: str
    chain: str
    rule: str
    prepend: bool = False


@dataclass(frozen=True)
class TableChange:
    """What one table shall look like afterwards: the chains named here are emptied and filled anew.

    `chains` maps a chain of ours to all of its rules (without `-A chain`); `delete` names chains of ours
    to remove; `extra` are raw lines (`-A …`, `-I …`, `-D …`) appended after the chains.
    """

    table: str
    chains: Mapping[str, Sequence[str]] = field(default_factory=dict)
    delete: Sequence[str] = ()
    extra: Sequence[str] = ()


def render(changes: Iterable[TableChange]) -> str:
    """The input of `iptables-restore --noflush` for these changes. Pure."""
    raise NotImplementedError


def restore(text: str | bytes, *, family: Family = 4, noflush: bool = True, timeout: float = 60.0) -> None:
    """Applies `text` with `iptables-restore -w` (all or nothing per table). Raises ProcessFailed."""
    raise NotImplementedError


async def restore_async(
    text: str | bytes, *, family: Family = 4, noflush: bool = True, timeout: float = 60.0
) -> None:
    """As `restore`, without blocking the event loop."""
    raise NotImplementedError


def save(table: str, *, family: Family = 4, counters: bool = False) -> str:
    """The text of `iptables-save -t table` ('' when the kernel has no such table). Raises ProcessFailed."""
    raise NotImplementedError


def parse_save(text: str) -> dict[str, dict[str, list[str]]]:
    """`iptables-save` output as {table: {chain: [rule without '-A chain']}}. Pure."""
    raise NotImplementedError


def ensure(changes: Sequence[TableChange], jumps: Sequence[Jump] = (), *, family: Family = 4) -> bool:
    """Makes the chains and jumps of `changes` exist with exactly these rules; True when it had to write.

    One `iptables-save` per table; nothing is written when all is in place already. Jumps found more than
    once are reduced to one.
    """
    raise NotImplementedError


def remove(chains: Mapping[str, Sequence[str]], *, family: Family = 4) -> None:
    """Removes chains ({table: [chain, …]}) and every rule anywhere that jumps to them. Idempotent."""
    raise NotImplementedError


def quote(comment: str) -> str:
    """A comment as one word of iptables-restore syntax: printable ASCII, at most 255 bytes, in quotes."""
    raise NotImplementedError
