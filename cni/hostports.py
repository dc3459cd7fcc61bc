"""Host ports: rules that lead a port of the node to a pod's port (capability `portMappings`).

    nat    PREROUTING, OUTPUT  to a local address -j NODELET-HOSTPORTS   one DNAT for each port and family
    nat    POSTROUTING                            -j NODELET-HP-MASQ     for a pod or the node calling itself
    filter INPUT                                  -j NODELET-LOCALNET    no stranger reaches 127.0.0.0/8

Each pod's ports are a record on disk; under a lock, a pod more is rules more, and everything else makes both
chains anew from all records. So a kill between two steps, a second try and a flush by somebody else are all
mended by the next `assert_rules`, and no rule outlives its pod. Jumps go to the end of the built-in chains
and match local addresses only: services and transit traffic keep their ways (CVE-2019-9946, CVE-2025-67499).

A port on 127.0.0.1 needs `route_localnet` on the bridge, which would open the node's loopback to its pods
(CVE-2020-8558); the rule in INPUT that closes it again is in place before the switch is turned.

Not for: services of type NodePort.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cni.config import Attachment, NetworkConfig
from cni.runtimeconfig import PortMapping
from host import files, processes
from host.errors import NotFound
from host.processes import ProcessFailed
from host.rtnl import IPAddress, IPInterface
from host.rules import iptables
from host.rules.iptables import Family, Jump, TableChange

HOSTPORTS, MASQUERADE, LOCALNET = "NODELET-HOSTPORTS", "NODELET-HP-MASQ", "NODELET-LOCALNET"
_KIND, _VERSION = "host-ports", 1
_FAMILIES: tuple[Family, ...] = (4, 6)
_LOOPBACK = {4: "127.0.0.1/32", 6: "::1/128"}
_LOCALNET_DROP = "-d 127.0.0.0/8 ! -i lo -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"


@dataclass(frozen=True)
class PodPorts:
    """The host ports of one pod interface. `label` names the pod to people."""

    label: str
    addresses: tuple[IPAddress, ...]
    mappings: tuple[PortMapping, ...]


def plan_rules(pods: Sequence[PodPorts], family: Family) -> tuple[list[TableChange], list[Jump]]:
    """Chains and jumps for these pods' ports; where two pods claim a port the first one has it. Pure."""
    forward: list[str] = []
    masquerade: list[str] = []
    for pod in pods:
        for address in (address for address in pod.addresses if address.version == family):
            for mapping in pod.mappings:
                if mapping.host_ip is None or mapping.host_ip.version == family:
                    _add_rules(forward, masquerade, pod.label, address=address, mapping=mapping)
    nat = TableChange("nat", {HOSTPORTS: forward, MASQUERADE: list(dict.fromkeys(masquerade))})
    comment = '-m comment --comment "nodelet: host ports"'
    jumps = [
        Jump("nat", chain, f"-m addrtype --dst-type LOCAL {comment} -j {HOSTPORTS}")
        for chain in ("PREROUTING", "OUTPUT")
    ]
    jumps.append(Jump("nat", "POSTROUTING", f"{comment} -j {MASQUERADE}"))
    if family == 6:
        return [nat], jumps
    jumps.append(Jump("filter", "INPUT", f"{comment} -j {LOCALNET}", prepend=True))
    return [nat, TableChange("filter", {LOCALNET: [_LOCALNET_DROP]})], jumps


def plan_insertion(pod: PodPorts, family: Family) -> TableChange:
    """What the newest pod adds to the chains of `plan_rules`: its rules come first. Pure."""
    (nat, *_), _ = plan_rules([pod], family)
    lines = [f"-I {chain} {rule}" for chain, rules in nat.chains.items() for rule in reversed(rules)]
    return TableChange(nat.table, extra=lines)


def _add_rules(
    forward: list[str], masquerade: list[str], label: str, *, address: IPAddress, mapping: PortMapping
) -> None:
    protocol, length = mapping.protocol, address.max_prefixlen
    where = f"-d {mapping.host_ip}/{length} " if mapping.host_ip else ""
    target = (
        f"{address}:{mapping.container_port}"
        if address.version == 4
        else f"[{address}]:{mapping.container_port}"
    )
    comment = iptables.quote(f"host port of {label}")
    forward.append(
        f"{where}-p {protocol} -m {protocol} --dport {mapping.host_port} -m comment --comment {comment}"
        f" -j DNAT --to-destination {target}"
    )
    for source in (f"{address}/{length}", _LOOPBACK[address.version]):
        masquerade.append(
            f"-s {source} -d {address}/{length} -p {protocol} -m {protocol} --dport {mapping.container_port}"
            f" -m comment --comment {comment} -j MASQUERADE"
        )


def add(
    network: NetworkConfig, attachment: Attachment, addresses: Sequence[IPInterface], *, label: str
) -> None:
    """Open a pod's host ports; nothing to do for a pod without any. `label` names the pod in comments."""
    if not network.pod.port_mappings:
        return
    folder = _folder(network.state_dir / network.name)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pod = PodPorts(label, tuple(address.ip for address in addresses), network.pod.port_mappings)
    path = folder / _file_name(attachment)
    with files.locked(folder / "lock", wait=True):
        is_new = not path.exists()
        files.write_record(path, _to_json(pod), kind=_KIND, version=_VERSION, sync=False)
        _write_locked(folder, new=pod if is_new else None)
    _open_loopback(network.bridge)
    _forget_udp(pod)


def remove(network: NetworkConfig, attachment: Attachment) -> None:
    """Close a pod's host ports; nothing to do for a pod without any.

    The record goes last: a DEL that dies before its rules are gone is repeated, and must find it.
    """
    folder = _folder(network.state_dir / network.name)
    path = folder / _file_name(attachment)
    if not path.exists():
        return
    with files.locked(folder / "lock", wait=True):
        pod = _read(path)
        _write_locked(folder, gone=(path, pod))
        path.unlink(missing_ok=True)
    if pod:
        _forget_udp(pod)


def assert_rules(state: Path) -> bool:
    """Make the rules be as the records in a network's state folder say; True when some were missing."""
    folder = _folder(state)
    if not folder.is_dir():
        return False
    with files.locked(folder / "lock", wait=True):
        return _assert_locked(folder)


def check(network: NetworkConfig, attachment: Attachment) -> str:
    """What is wrong with a pod's host ports, as text for CHECK; '' when nothing is, or it has none."""
    path = _folder(network.state_dir / network.name) / _file_name(attachment)
    pod = _read(path) if path.exists() else None
    if pod is None:
        return "its host ports are not on record" if network.pod.port_mappings else ""
    if network.pod.port_mappings and set(network.pod.port_mappings) != set(pod.mappings):
        return "other host ports are on record than it asks for"
    for family in _families([pod]):
        changes, jumps = plan_rules([pod], family)
        for jump in jumps:
            if jump.rule not in (iptables.read_chain(jump.table, jump.chain, family=family) or ()):
                return f"no rule of {jump.chain} in table {jump.table} leads to {jump.target}"
        for change in changes:
            for chain, rules in change.chains.items():
                there = iptables.read_chain(change.table, chain, family=family) or ()
                if missing := [rule for rule in rules if rule not in there]:
                    return f"{chain} has lost the rule {missing[0]}"
    return ""


def owners(network: NetworkConfig) -> set[Attachment]:
    """Whose records there are."""
    with suppress(FileNotFoundError):
        names = [name.split(",") for name in _records(_folder(network.state_dir / network.name))]
        return {Attachment(*name) for name in names if len(name) == 2}
    return set()


def remove_all() -> None:
    """Take all rules away (for `nodelet reset`)."""
    for family in _FAMILIES:
        with suppress(NotFound):
            iptables.remove({"nat": [HOSTPORTS, MASQUERADE], "filter": [LOCALNET]}, family=family)


def _folder(state: Path) -> Path:
    return state / "ports"


def _file_name(attachment: Attachment) -> str:
    return f"{attachment.container_id},{attachment.ifname}"


def _write_locked(
    folder: Path, *, new: PodPorts | None = None, gone: tuple[Path, PodPorts | None] | None = None
) -> None:
    """For one pod more, or one less, without reading the tables.

    One more only inserts: where a rule is taken away, the kernel waits for RCU, 10 ms or more.
    """
    path, was = gone or (None, None)
    pods = _pods(folder, without=path)
    for family in _families([*pods, was] if was else pods):
        changes, jumps = plan_rules(pods, family)
        nat = plan_insertion(new, family) if new else changes[0]
        try:
            iptables.restore(iptables.render(_unless_flushed(nat, jumps)), family=family)
        except ProcessFailed:
            iptables.ensure(changes, jumps, family=family)


def _unless_flushed(nat: TableChange, jumps: Sequence[Jump]) -> list[TableChange]:
    """A transaction that fails where a table has lost its jumps. One is looked for: a flush takes all."""
    firsts = {jump.table: f"-C {jump.chain} {jump.rule}" for jump in reversed(jumps)}
    others = [TableChange(table, extra=[check]) for table, check in firsts.items() if table != nat.table]
    return [*others, replace(nat, extra=[firsts[nat.table], *nat.extra])]


def _families(pods: Sequence[PodPorts]) -> list[Family]:
    six = any(address.version == 6 for pod in pods for address in pod.addresses)
    return [4, 6] if six else [4]


def _records(folder: Path) -> list[str]:
    """Names of the pods' records, without those half-written or set aside."""
    return [name for name in os.listdir(folder) if "," in name and name[0] != "." and name[-8:] != ".corrupt"]


def _pods(folder: Path, *, without: Path | None = None) -> list[PodPorts]:
    paths = [folder / name for name in _records(folder)]
    paths.sort(key=lambda path: path.stat().st_mtime, reverse=True)  # the newest pod has a port
    return [pod for path in paths if path != without and (pod := _read(path))]


def _assert_locked(folder: Path) -> bool:
    pods = _pods(folder)
    return any([iptables.ensure(*plan_rules(pods, family), family=family) for family in _families(pods)])


def _read(path: Path) -> PodPorts | None:
    try:
        return _from_json(files.read_record(path, kind=_KIND, version=_VERSION))
    except NotFound:
        return None
    except (files.CorruptRecord, KeyError, TypeError, ValueError):
        files.quarantine(path)
        return None


def _to_json(pod: PodPorts) -> dict[str, Any]:
    mappings = [
        [mapping.host_port, mapping.container_port, mapping.protocol, str(mapping.host_ip or "")]
        for mapping in pod.mappings
    ]
    return {"label": pod.label, "addresses": [str(ip) for ip in pod.addresses], "mappings": mappings}


def _from_json(data: Any) -> PodPorts:
    mappings = tuple(
        PortMapping(int(host), int(container), str(protocol), ipaddress.ip_address(ip) if ip else None)
        for host, container, protocol, ip in data["mappings"]
    )
    return PodPorts(str(data["label"]), tuple(map(ipaddress.ip_address, data["addresses"])), mappings)


def _open_loopback(bridge: str) -> None:
    Path(f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet").write_text("1")


def _forget_udp(pod: PodPorts) -> None:
    """Flows that conntrack knows keep their old target for ever while packets flow: forget them."""
    for port in _udp_ports(pod.mappings):
        with suppress(NotFound):  # without the program, old flows end after 30 s of silence
            processes.run(["conntrack", "-D", "-p", "udp", "--orig-port-dst", str(port)], check=False)


def _udp_ports(mappings: Iterable[PortMapping]) -> list[int]:
    return sorted({mapping.host_port for mapping in mappings if mapping.protocol == "udp"})
