"""The iptables back end: applies the planner's transactions and notices when somebody else undid them.

It remembers what it last wrote for each Service, so that one change costs one small transaction and no
listing (k/k#139513). When a transaction fails, that memory is worth nothing any more: the next sync is a full
one, which reads the kernel.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.services import diff, rules
from agent.services.picture import VirtualService
from agent.services.rules import ServiceRules, Settings
from host.rules import iptables
from host.rules.iptables import Family, Tables, parse_save

_log = logging.getLogger(__name__)


class Port(Protocol):
    """What the back end asks of the machine's iptables."""

    async def restore(self, text: str) -> None:
        """Apply one transaction, all or nothing for each table. Raises HostError."""

    async def save(self) -> Tables:
        """All chains and rules of the tables we use. Raises HostError."""

    async def read_chain(self, table: str, chain: str) -> list[str] | None:
        """One chain's rules, or None where it does not exist."""

    async def batch_limit(self) -> int | None:
        """How many chains one transaction should hold at most; None: any number."""


class HostIptables:
    """The machine's iptables, in the network namespace of this process."""

    def __init__(self, *, family: Family = 4) -> None:
        self._family: Family = family

    async def restore(self, text: str) -> None:
        await iptables.restore_async(text, family=self._family)

    async def save(self) -> Tables:
        # Once for all tables: with the nft back end each call reads the whole ruleset, whatever it prints.
        return await asyncio.to_thread(lambda: parse_save(iptables.save(family=self._family)))

    async def read_chain(self, table: str, chain: str) -> list[str] | None:
        return await asyncio.to_thread(iptables.read_chain, table, chain, family=self._family)

    async def batch_limit(self) -> int | None:
        # The legacy back end reads and writes a whole table each time: there, one transaction is best.
        found = await asyncio.to_thread(iptables.back_end)
        if found.other_rules:
            _log.warning(
                "two sets of rules judge each packet: iptables is %s, and its other back end has %d rules",
                found.version,
                found.other_rules,
            )
        return diff.BATCH if found.kind == "nft" else None


@dataclass(frozen=True)
class Synced:
    """What a sync did: whether it was a full one, transactions, bytes of rules, seconds."""

    full: bool
    transactions: int
    size: int
    seconds: float


class IptablesBackEnd:
    """Rules of all Services of one IP family.

    Args:
        settings: how rules are written.
        port: the machine's iptables; tests pass one that behaves.
    """

    def __init__(self, settings: Settings, *, port: Port | None = None) -> None:
        self._settings = settings
        self._port: Port = port or HostIptables(family=settings.family)
        self._written: dict[str, ServiceRules] | None = None
        self._limit: int | None = None

    def forget(self) -> None:
        """Distrust what was written: the next sync is a full one."""
        self._written = None

    async def sync(self, services: Mapping[str, VirtualService], changed: Iterable[str]) -> Synced:
        """Make the kernel hold the rules of these Services.

        Args:
            services: every Service, by key.
            changed: keys that may differ from the last sync; ignored by a full sync.

        Raises:
            HostError: iptables refused; the next sync will be a full one.
        """
        began = time.perf_counter()
        written, self._written = self._written, None
        full = written is None
        if written is None:
            self._limit = await self._port.batch_limit()
            present = await self._port.save()
            written, texts = await asyncio.to_thread(self._plan_all, services, present)
        else:
            old = {key: written[key] for key in changed if key in written}
            new = {
                key: rules.plan_service(services[key], self._settings) for key in changed if key in services
            }
            texts = diff.pack(diff.partial(old, new), limit=self._limit)
            for key in old:
                del written[key]
            written.update(new)
        for text in texts:
            await self._port.restore(text)
        self._written = written
        seconds = time.perf_counter() - began
        return Synced(full, len(texts), sum(len(text) for text in texts), seconds)

    def _plan_all(
        self, services: Mapping[str, VirtualService], present: Tables
    ) -> tuple[dict[str, ServiceRules], list[str]]:
        """Seconds of work with ten thousand Services, hence done in a thread."""
        wanted = {key: rules.plan_service(service, self._settings) for key, service in services.items()}
        return wanted, diff.pack(diff.full(present, wanted, self._settings), limit=self._limit)

    async def drifted(self) -> str:
        """Why the kernel no longer holds what was written, as words for a log; "" when all looks well.

        Reads a few small chains, never everything: somebody who flushes rules flushes these too. The empty
        canary chain goes with `iptables -X`, our rules in the kernel's own chains with `iptables -F`.
        """
        for table, chains in rules.fixed_chains(self._settings).items():
            for chain, wanted in chains.items():
                if await self._port.read_chain(table, chain) != list(wanted):
                    return f"chain {chain} of table {table} was changed by somebody else"
        for table, chain in dict.fromkeys((jump.table, jump.chain) for jump in rules.jumps()):
            there = await self._port.read_chain(table, chain) or []
            for jump in rules.jumps():
                if (jump.table, jump.chain) == (table, chain) and there.count(jump.rule) != 1:
                    return f"chain {chain} of table {table} has no single jump to {jump.target}"
        return ""

    async def clean_up(self) -> None:
        """Remove every chain and rule of ours; other people's stay.

        Raises:
            HostError: iptables refused.
        """
        self._written = None
        limit = await self._port.batch_limit()
        steps = diff.removal(await self._port.save())
        for text in diff.pack(steps, limit=limit):
            await self._port.restore(text)
