"""Whether this machine's own packet filters let a new connection in, and which rule does not. Pure.

What ufw writes (iptables) and firewalld writes (an nftables table) is walked as the kernel walks it, for one
packet that comes in by one device. A rule with a match that is not understood is taken not to match; so what
is found here is a rule that does drop, and silence is no promise.

Source: iptables-save(8), libnftables-json(5).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_ENDS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop"}
_MODULES = {"tcp", "udp", "comment", "conntrack", "state", "multiport", "addrtype"}
_FLAGS = ("-p", "-i", "--dport", "--dports", "--ctstate", "--state", "--dst-type", "-m", "-j", "-g")
_DEPTH = 32


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection from elsewhere to this machine."""

    protocol: str
    port: int
    device: str


# --- iptables --------------------------------------------------------------------------------------------


def refused_by_iptables(save: str, packet: Packet, chain: str = "INPUT") -> str:
    """The chain of the filter table in which it is dropped, with the rule or policy; "" if it gets in.

    Args:
        save: the output of iptables-save.
        packet: judged by protocol, port and device alone.
        chain: INPUT, or FORWARD for what is passed on.
    """
    chains: dict[str, list[list[str]]] = {}
    policies: dict[str, str] = {}
    table = ""
    for line in save.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif table == "filter" and line.startswith(":"):
            name, policy = line[1:].split()[:2]
            chains[name], policies[name] = [], policy
        elif table == "filter" and line.startswith("-A "):
            words = shlex.split(line)
            chains.setdefault(words[1], []).append(_without_comment(words[2:]))
    found = _walk_iptables(chains, chain, packet, 0)
    if not found and policies.get(chain) == "DROP":
        return f"iptables {chain} drops what no rule accepts"
    return "" if found == "accept" else found


def _without_comment(words: list[str]) -> list[str]:
    if "--comment" not in words:
        return words
    at = words.index("--comment")
    return words[:at] + words[at + 2 :]


def _walk_iptables(
    chains: Mapping[str, Sequence[Sequence[str]]], chain: str, packet: Packet, depth: int
) -> str:
    """ "accept", where it is dropped, or "" at the end of the chain."""
    for words in chains.get(chain, ()) if depth < _DEPTH else ():
        target = _after(words, "-j") or _after(words, "-g")
        if not target or not _matches_iptables(words, packet):
            continue
        if target == "RETURN":
            return ""
        if target in _ENDS:
            return "accept" if _ENDS[target] == "accept" else f"iptables {chain}: {' '.join(words)}"
        found = _walk_iptables(chains, target, packet, depth + 1)
        if found or "-g" in words:
            return found
    return ""


def _matches_iptables(words: Sequence[str], packet: Packet) -> bool:
    end = words.index("-j") if "-j" in words else words.index("-g")  # what follows belongs to the target
    known = {flag: _after(words[:end], flag) for flag in _FLAGS}
    modules = [words[n + 1] for n, word in enumerate(words[:end]) if word == "-m"]
    flags = {word for word in words[:end] if word.startswith("-")}
    if "!" in words[:end] or not flags <= set(_FLAGS) or not set(modules) <= _MODULES:
        return False
    states = known["--ctstate"] or known["--state"]
    ports = known["--dport"] or known["--dports"]
    return (
        known["-p"] in ("", "all", packet.protocol)
        and known["-i"] in ("", packet.device)
        and known["--dst-type"] in ("", "LOCAL")
        and (not states or "NEW" in states.split(","))
        and (not ports or any(_in_range(part, packet.port) for part in ports.split(",")))
    )


def _in_range(text: str, port: int) -> bool:
    first, colon, last = text.partition(":")
    numbers = first.isdigit() and (not colon or last.isdigit())
    return numbers and int(first) <= port <= int(last if colon else first)


def _after(words: Sequence[str], flag: str) -> str:
    return words[words.index(flag) + 1] if flag in words[:-1] else ""


# --- nftables --------------------------------------------------------------------------------------------


def refused_by_nftables(ruleset: Any, packet: Packet, hook: str = "input") -> str:
    """As `refused_by_iptables`, for every base chain of a hook in `nft -j list ruleset`.

    Tables that iptables-nft made (their rules carry xt expressions) are left to the other one.
    """
    items = ruleset.get("nftables", []) if isinstance(ruleset, dict) else []
    chains = [item["chain"] for item in items if "chain" in item]
    rules: dict[tuple[str, str, str], list[list[Any]]] = {}
    for rule in (item["rule"] for item in items if "rule" in item):
        rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule["expr"])
    for chain in chains:
        table = (chain["family"], chain["table"])
        if chain.get("hook") != hook or chain.get("type") != "filter" or _of_iptables(table, rules):
            continue
        name = f"nftables {chain['family']} {chain['table']} {chain['name']}"
        found = _walk_nftables(rules, (*table, chain["name"]), packet, 0)
        if found not in ("", "accept"):
            return found
        if not found and chain.get("policy") == "drop":
            return f"{name} drops what no rule accepts"
    return ""


def _of_iptables(
    table: tuple[str, str], rules: Mapping[tuple[str, str, str], Sequence[Sequence[Any]]]
) -> bool:
    listed = (rule for (*where, _), found in rules.items() if tuple(where) == table for rule in found)
    return any("xt" in part for rule in listed for part in rule)


def _walk_nftables(
    rules: Mapping[tuple[str, str, str], Sequence[Sequence[Any]]],
    where: tuple[str, str, str],
    packet: Packet,
    depth: int,
) -> str:
    for rule in rules.get(where, ()) if depth < _DEPTH else ():
        for part in rule:
            if "match" in part:
                if not _matches_nftables(part["match"], packet):
                    break
            elif "accept" in part:
                return "accept"
            elif "drop" in part or "reject" in part:
                return f"nftables {' '.join(where)}"
            elif "return" in part:
                return ""
            elif target := _target(part):
                found = _walk_nftables(rules, (*where[:2], target), packet, depth + 1)
                if found or "goto" in part:
                    return found
            elif "vmap" in part or "xt" in part:
                break
    return ""


def _target(part: Mapping[str, Any]) -> str:
    jump = part.get("jump") or part.get("goto")
    return str(jump["target"]) if jump else ""


def _matches_nftables(match: Mapping[str, Any], packet: Packet) -> bool:
    value = _value(match["left"], packet)
    if value is None or match["op"] not in ("==", "in", "!="):
        return False
    found = any(_same(one, value) for one in _members(match["right"]))
    return found is not (match["op"] == "!=")


def _value(left: Any, packet: Packet) -> str | int | None:
    """What the expression reads from the packet; None for what is not understood."""
    match left:
        case {"meta": {"key": "iifname"}}:
            return packet.device
        case {"meta": {"key": "l4proto"}}:
            return packet.protocol
        case {"ct": {"key": "state"}}:
            return "new"
        case {"payload": {"protocol": protocol, "field": "dport"}}:
            return packet.port if protocol in (packet.protocol, "th") else None
    return None


def _members(right: Any) -> Iterator[Any]:
    if isinstance(right, dict) and "set" in right:
        for one in right["set"]:
            yield one.get("elem", {}).get("val", one) if isinstance(one, dict) and "elem" in one else one
    elif isinstance(right, list):
        yield from right
    else:
        yield right


def _same(one: Any, value: str | int) -> bool:
    if isinstance(one, dict) and "range" in one:
        low, high = one["range"]
        return isinstance(value, int) and low <= value <= high
    return bool(one == value)
