"""An iptables that behaves, in memory, and a packet that walks through its rules.

`FakeIptables` understands the inputs our planner makes, is all-or-nothing for each table like the real one,
and refuses what the real one refuses: a jump to a chain that is not there, deleting a rule that is not there
or a chain that something still leads to. `trace` answers the only question that matters: where does this
packet end up?
"""

from __future__ import annotations

import errno
import ipaddress
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from host.errors import HostError
from host.rules.iptables import Tables, target_of

BUILT_IN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}
TARGETS = {"ACCEPT", "DROP", "REJECT", "RETURN", "MARK", "DNAT", "MASQUERADE"}


class FakeIptables:
    """The port of `agent.services.iptables` over dictionaries."""

    def __init__(self, *, limit: int | None = None) -> None:
        self.tables: Tables = {table: {chain: [] for chain in chains} for table, chains in BUILT_IN.items()}
        self.texts: list[str] = []
        self.failures = 0
        self.saves = 0
        self.limit = limit

    async def restore(self, text: str) -> None:
        self.texts.append(text)
        if self.failures:
            self.failures -= 1
            raise HostError(errno.EIO, "iptables-restore", "told to fail")
        table, work = "", {}
        for line in text.splitlines():
            if line.startswith("*"):
                table = line[1:]
                work = {chain: list(rules) for chain, rules in self.tables[table].items()}
            elif line == "COMMIT":
                self._check(work, table)
                self.tables[table] = work
            elif line.startswith(":"):
                work[line[1:].split()[0]] = []
            else:
                self._edit(work, line)

    def _edit(self, chains: dict[str, list[str]], line: str) -> None:
        verb, chain, *_ = line.split(" ", 2)
        rule = line.split(" ", 2)[2] if line.count(" ") >= 2 else ""
        if chain not in chains:
            raise HostError(errno.EINVAL, "iptables-restore", f"no chain {chain}")
        if verb == "-A":
            chains[chain].append(rule)
        elif verb == "-I":
            chains[chain].insert(0, rule)
        elif verb == "-D":
            if rule not in chains[chain]:
                raise HostError(errno.EINVAL, "iptables-restore", f"no such rule in {chain}: {rule}")
            chains[chain].remove(rule)
        elif verb == "-X":
            users = [name for name, rules in chains.items() for one in rules if target_of(one) == chain]
            if chains[chain] or users:
                raise HostError(errno.EBUSY, "iptables-restore", f"chain {chain} is used by {users}")
            del chains[chain]
        else:
            raise AssertionError(f"a verb the fake does not know: {line}")

    def _check(self, chains: dict[str, list[str]], table: str) -> None:
        for name, rules in chains.items():
            for rule in rules:
                target = target_of(rule)
                if target not in chains and target not in TARGETS:
                    raise HostError(errno.EINVAL, "iptables-restore", f"{table} {name}: no chain {target}")

    async def save(self) -> Tables:
        self.saves += 1
        return {
            table: {chain: list(rules) for chain, rules in chains.items()}
            for table, chains in self.tables.items()
        }

    async def read_chain(self, table: str, chain: str) -> list[str] | None:
        rules = self.tables[table].get(chain)
        return None if rules is None else list(rules)

    async def batch_limit(self) -> int | None:
        return self.limit


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection. `interface` is "" when the node itself sends it."""

    source: str
    destination: str
    port: int
    protocol: str = "tcp"
    interface: str = "eth0"
    mark: int = 0


@dataclass(frozen=True)
class Verdict:
    """Where it ended: "ACCEPT", "REJECT" or "DROP", the destination after translation, and masquerading."""

    what: str
    to: str
    masqueraded: bool = False


@dataclass
class Walk:
    """One packet on its way.

    Attributes:
        tables: the rules.
        local: addresses of the node.
        chance: answers a rule's probability with a number to compare; `lambda p: 0` always takes it.
        recent: addresses remembered by name, for session affinity.
    """

    tables: Tables
    local: frozenset[str]
    chance: Callable[[float], float]
    recent: dict[str, set[str]] = field(default_factory=dict)
    packet: Packet = field(default_factory=lambda: Packet("", "", 0))
    translated: bool = False

    def run(self, table: str, chain: str) -> str:
        """The verdict of a chain, or "" when it falls through."""
        for rule in self.tables[table][chain]:
            words = shlex.split(rule)
            if not self._matches(words):
                continue
            target = words[words.index("-j") + 1]
            if target == "RETURN":
                return ""
            verdict = self._act(table, target, words)
            if verdict:
                return verdict
        return ""

    def _act(self, table: str, target: str, words: list[str]) -> str:
        if target == "MARK":
            value, mask = (int(part, 16) for part in words[words.index("--set-xmark") + 1].split("/"))
            # --set-xmark value/mask: zero the mask's bits, then xor the value
            self.packet = replace(self.packet, mark=self.packet.mark & ~mask ^ value)
            return ""
        if target == "DNAT":
            ip, _, port = words[words.index("--to-destination") + 1].rpartition(":")
            self.packet = replace(self.packet, destination=ip.strip("[]"), port=int(port))
            self.translated = True
            return "ACCEPT"
        if target in TARGETS:
            return target
        return self.run(table, target)

    def _matches(self, words: list[str]) -> bool:
        index, negate = 0, False
        while index < len(words):
            word = words[index]
            if word == "-j":
                return True
            if word == "!":
                negate, index = True, index + 1
                continue
            used, holds = self._one(word, words[index + 1 :])
            if holds == negate:
                return False
            negate, index = False, index + used + 1
        return True

    def _one(self, word: str, rest: list[str]) -> tuple[int, bool]:
        """One match: how many further words it uses, and whether it holds."""
        packet = self.packet
        if word in ("-s", "-d"):
            address = packet.source if word == "-s" else packet.destination
            return 1, ipaddress.ip_address(address) in ipaddress.ip_network(rest[0])
        if word == "-i":
            return 1, packet.interface == rest[0]
        if word == "-p":
            return 1, packet.protocol == rest[0]
        if word == "--dport":
            return 1, packet.port == int(rest[0])
        if word in ("--dst-type", "--src-type"):
            address = packet.destination if word == "--dst-type" else packet.source
            return 1, address in self.local
        if word == "--mark":
            value, mask = (int(part, 16) for part in rest[0].split("/"))
            return 1, packet.mark & mask == value
        if word == "--ctstate":
            return 1, "NEW" in rest[0].split(",")
        if word == "--probability":
            return 1, self.chance(float(rest[0])) < float(rest[0])
        if word in ("--rcheck", "--set"):
            name = rest[rest.index("--name") + 1]
            if word == "--set":
                self.recent.setdefault(name, set()).add(packet.source)
                return 0, True
            return 0, packet.source in self.recent.get(name, set())
        if word in ("--rsource", "--reap"):
            return 0, True
        return 1, True  # -m NAME, --comment TEXT, --mode random, --seconds N, --name N, --mask M


def trace(
    tables: Tables,
    packet: Packet,
    *,
    local: frozenset[str] = frozenset({"192.168.0.1", "127.0.0.1"}),
    chance: Callable[[float], float] = lambda probability: 0.0,
    recent: dict[str, set[str]] | None = None,
) -> Verdict:
    """Send the first packet of a connection through nat, filter and nat again, as the kernel would."""
    walk = Walk(tables, local, chance, {} if recent is None else recent, packet)
    own = packet.interface == ""
    walk.run("nat", "OUTPUT" if own else "PREROUTING")
    inward = "INPUT" if walk.packet.destination in local else "FORWARD"
    chain = "OUTPUT" if own else inward
    verdict = walk.run("filter", chain)
    to = f"{walk.packet.destination}:{walk.packet.port}"
    if verdict in ("DROP", "REJECT"):
        return Verdict(verdict, to)
    masqueraded = chain != "INPUT" and walk.run("nat", "POSTROUTING") == "MASQUERADE"
    return Verdict("ACCEPT", to, masqueraded)
