"""The policies' one hold on the kernel: write the table, look whether it is still what was written.

All methods block, in the network namespace of the thread that calls them; `PolicyAgent` calls them from a
thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from agent.policy import rules
from host.errors import NotFound
from host.netlink import nftables_counter, nftables_generation
from host.rules import nft, nftelements
from host.rules.nft import Content
from host.rules.nftelements import Change

BRIDGE_SWITCHES = ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")


class Kernel(Protocol):
    """What policies need of a kernel."""

    def write(self, text: str, *, whole: Content | None = None) -> None:
        """Apply a transaction of the table, all or nothing; `whole` is what the table holds after one that
        made it anew. Raises HostError."""

    def write_elements(self, changes: Sequence[Change]) -> None:
        """Apply changes of elements, all or nothing. Raises HostError."""

    def touched(self) -> bool:
        """Whether anybody else has made a transaction, of any table, since the last write or comparison.

        Raises HostError."""

    def differs(self, wanted: Content | None) -> str:
        """How the table differs from what is wanted (None: no table); "" when it does not. HostError."""

    def dropped(self) -> int:
        """Packets dropped since the table was written as a whole; 0 without a table. Raises HostError."""

    def filter_bridge(self) -> str:
        """Let packets that a bridge passes on be filtered; why that is not possible, "" when it is."""


class NftKernel:
    """The real one.

    Args:
        proc_sys: where the kernel's switches are.
    """

    def __init__(self, proc_sys: Path = Path("/proc/sys")) -> None:
        self._proc_sys = proc_sys
        self._generation: int | None = None
        self._words: dict[str, str] = {}
        """Rules that this machine's nft lists in other words than ours."""
        self._doubtful = False

    def write(self, text: str, *, whole: Content | None = None) -> None:
        """See Kernel."""
        self._follow(lambda: nft.apply(text))
        if self._doubtful and whole is not None:
            self._learn(whole)

    def write_elements(self, changes: Sequence[Change]) -> None:
        """See Kernel."""
        self._follow(lambda: nftelements.apply(rules.TABLE, changes))

    def _follow(self, write: Callable[[], None]) -> None:
        """Make a transaction and remember its generation, if nobody else made one at the same time."""
        before, self._generation = nftables_generation(), None
        write()
        after = nftables_generation()
        # One step is ours; more, and somebody else wrote at the same time.
        self._generation = after if after == before + 1 else None

    def _learn(self, written: Content) -> None:
        """How nft lists what was just written, after it was listed in words that were not ours."""
        listed = nft.read("inet", rules.TABLE)
        if listed is None or nftables_generation() != self._generation:
            return  # somebody's hand may be in it: at another time
        self._doubtful = False
        for name, ours in written.chains.items():
            theirs = listed.chains.get(name, ())
            if len(theirs) == len(ours):
                self._words |= {a: b for a, b in zip(ours, theirs, strict=True) if a != b}

    def touched(self) -> bool:
        """See Kernel. One message to the kernel and its answer."""
        return self._generation is None or nftables_generation() != self._generation

    def differs(self, wanted: Content | None) -> str:
        """See Kernel."""
        generation = nftables_generation()
        present = nft.read("inet", rules.TABLE)
        if wanted is not None and self._words:
            known = self._words
            chains = {n: tuple(known.get(r, r) for r in listed) for n, listed in wanted.chains.items()}
            wanted = Content(wanted.sets, chains)
        difference = _difference(wanted, present)
        self._doubtful = bool(difference)
        self._generation = None if difference else generation
        return difference

    def dropped(self) -> int:
        """See Kernel. One message to the kernel and its answer."""
        try:
            return nftables_counter(rules.TABLE, rules.DROPPED)
        except NotFound:
            return 0

    def filter_bridge(self) -> str:
        """See Kernel."""
        for name in BRIDGE_SWITCHES:
            path = self._proc_sys / name
            try:
                if path.read_text().strip() != "1":
                    path.write_text("1")
            except FileNotFoundError:
                return f"this kernel has no {name.replace('/', '.')}: modprobe br_netfilter"
            except OSError as exc:
                return f"cannot write {path}: {exc.strerror}"
        return ""


def _difference(wanted: Content | None, present: Content | None) -> str:
    if wanted is None or present is None:
        return "" if wanted == present else ("the table is gone" if wanted else "a table is left over")
    for kind, ours, theirs in (
        ("set", wanted.sets, present.sets),
        ("chain", wanted.chains, present.chains),
    ):
        for name in sorted({*ours, *theirs}):
            if ours.get(name) != theirs.get(name):
                return f"{kind} {name} is not as written"
    return ""
