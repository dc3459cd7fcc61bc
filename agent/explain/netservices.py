"""What the node's service rules and host ports do to an address, read from the rules themselves. Pure.

The proxy writes the Service's name in a comment of each rule, and its chains lead from there to the
endpoints; so a Service is found here by name exactly when the kernel knows it.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent.explain.nettables import Tables
from agent.services import rules as service_rules
from cni import firewall, hostports
from host.rtnl import IPAddress

Endpoint = tuple[IPAddress, int]
_REFUSALS = (" has no endpoints", " has no local endpoints")
_CHAINS = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-")


@dataclass(frozen=True)
class Entry:
    """One virtual address that a rule recognises.

    Attributes:
        name: "namespace/service:port" or "namespace/service"; of a host port "host port of NAMESPACE/POD".
        address: None: any address of this node.
        target: the chain it goes to, or the DNAT's own "address:port"; "" where it is refused.
        refusal: why it is refused, as the rule's comment says.
    """

    name: str
    address: IPAddress | None
    protocol: str
    port: int
    target: str
    refusal: str = ""

    @property
    def service(self) -> str:
        """namespace/name of the Service."""
        return self.name.partition(":")[0]

    @property
    def port_name(self) -> str:
        """The name of the Service's port, "" for none."""
        return self.name.partition(":")[2]


def entries(tables: Tables) -> Iterator[Entry]:
    """All virtual addresses of Services, those that are refused after those that are served."""
    for chain in (service_rules.SERVICES, service_rules.NODE_PORTS):
        yield from filter(None, (_entry(rule) for rule in tables.nat.get(chain, ())))
    for chain in (service_rules.SERVICES, service_rules.EXTERNAL):
        yield from filter(None, (_entry(rule) for rule in tables.filter.get(chain, ())))


def _host_ports(tables: Tables) -> Iterator[Entry]:
    return filter(None, (_entry(rule) for rule in tables.nat.get(hostports.HOSTPORTS, ())))


def _entry(rule: str) -> Entry | None:
    words = shlex.split(rule)
    number, target = after(words, "--dport"), after(words, "-j")
    if not number.isdigit() or words[0] == "!":
        return None
    comment = after(words, "--comment")
    refusal = next((end for end in _REFUSALS if comment.endswith(end)), "")
    if target in ("REJECT", "DROP") and not refusal:
        return None
    destination = after(words, "-d").partition("/")[0]
    return Entry(
        name=comment.removesuffix(refusal) if comment.startswith("host port") else comment.split(" ", 1)[0],
        address=ipaddress.ip_address(destination) if destination else None,
        protocol=after(words, "-p"),
        port=int(number),
        target="" if refusal else after(words, "--to-destination") or target,
        refusal=refusal.strip(),
    )


def named(tables: Tables, namespace: str, name: str) -> list[Entry]:
    """The cluster addresses of the Services of that name ("" as namespace: in any), one for each port."""
    found: dict[tuple[str, str], Entry] = {}
    for entry in entries(tables):
        where, _, called = entry.service.partition("/")
        if called == name and namespace in ("", where) and entry.address is not None:
            found.setdefault((entry.name, entry.protocol), entry)  # the cluster IP's rule comes first
    return list(found.values())


def matching(tables: Tables, address: IPAddress, protocol: str, port: int) -> Entry | None:
    """What recognises packets to this address and port."""
    here = address in tables.own
    for entry in (*entries(tables), *_host_ports(tables)):
        right_address = entry.address == address if entry.address else here and _family(entry, address)
        if right_address and (entry.protocol, entry.port) == (protocol, port):
            return entry
    return None


def _family(entry: Entry, address: IPAddress) -> bool:
    """A DNAT without an address of its own is of its target's family."""
    return entry.target.startswith("[") == (address.version == 6) if ":" in entry.target else True


def unreached(tables: Tables, entry: Entry, *, from_here: bool) -> str:
    """Why packets do not come to the rule, "" when they do."""
    hook = "OUTPUT" if from_here else "PREROUTING"
    wanted = hostports.HOSTPORTS if entry.name.startswith("host port") else service_rules.SERVICES
    if any(after(shlex.split(rule), "-j") == wanted for rule in tables.nat.get(hook, ())):
        return ""
    return f"nat {hook} does not lead to {wanted}: it is written again within half a minute"


def endpoints(tables: Tables, target: str) -> list[Endpoint]:
    """Where a chain or a DNAT sends packets, in the order of addresses."""
    if ":" in target:
        return [_destination(target)]
    return sorted(set(_destinations(tables, target, set())), key=lambda end: (end[0].version, *end))


def _destinations(tables: Tables, chain: str, seen: set[str]) -> Iterator[Endpoint]:
    if chain in seen:
        return
    seen.add(chain)
    for rule in tables.nat.get(chain, ()):
        words = shlex.split(rule)
        if to := after(words, "--to-destination"):
            yield _destination(to)
        elif after(words, "-j").startswith(_CHAINS):
            yield from _destinations(tables, after(words, "-j"), seen)


def _destination(text: str) -> Endpoint:
    address, _, number = text.rpartition(":")
    return ipaddress.ip_address(address.strip("[]")), int(number)


def forward_refusal(tables: Tables, address: IPAddress) -> str:
    """Why iptables' FORWARD drops a packet to a pod, "" when it does not."""
    if address.version not in tables.closed:
        return ""
    targets = {after(shlex.split(rule), "-j") for rule in tables.filter.get("FORWARD", ())}
    if targets & {firewall.FORWARD, "ACCEPT"}:
        return ""
    return f"FORWARD drops what nobody accepts, and does not lead to {firewall.FORWARD}"


def after(words: Sequence[str], flag: str) -> str:
    """The word after a flag, "" without one."""
    return words[words.index(flag) + 1] if flag in words[:-1] else ""
