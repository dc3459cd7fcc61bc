"""The node's packet filter and switches for pod traffic: forwarding on, and masquerading towards the outside.

    nat    POSTROUTING -s <pod range> -j NODELET-POSTRTG     pods of this node only
           NODELET-POSTRTG                                   return for pods and multicast, else on to
           NODELET-PEERS                                     return for nodes (the overlay's), masquerade
    filter FORWARD -j NODELET-FORWARD                        accept from and to pods where a policy would drop

The rules do not depend on single pods, so an ADD only looks whether they were made before: a marker file
tells for which boot, namespace and text. Who repairs them when somebody flushes them is the agent, through
`ensure_rules`.

Not for: services, NetworkPolicy and host ports (cni.hostports).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cni.config import NetworkConfig
from cni.runtimeconfig import RuntimeConfig
from host import files, netns
from host.errors import NotFound
from host.rtnl import IPNetwork
from host.rules import iptables
from host.rules.iptables import Family, Jump, TableChange

POSTROUTING, PEERS, FORWARD = "NODELET-POSTRTG", "NODELET-PEERS", "NODELET-FORWARD"
_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}
_FAMILIES: tuple[Family, ...] = (4, 6)
_MASQUERADE = "-j MASQUERADE --random-fully"
_SWITCHES = (
    ("net/ipv4/ip_forward", "1", 4),
    ("net/ipv6/conf/all/forwarding", "1", 6),
    ("net/bridge/bridge-nf-call-iptables", "1", 4),
    ("net/bridge/bridge-nf-call-ip6tables", "1", 6),
)


def plan_rules(config: NetworkConfig, family: Family) -> tuple[list[TableChange], list[Jump]]:
    """The chains and jumps of one IP family for a network; empty where it has no range of it. Pure.

    Written as iptables-save prints it, so that an unchanged table compares equal.
    """
    own = _of(family, config.subnets)
    if not own:
        return [], []
    pods = _without_parts([*own, *_of(family, config.cluster_cidrs)])
    forward = [f"-s {net} -j ACCEPT" for net in pods] + [f"-d {net} -j ACCEPT" for net in pods]
    changes = [TableChange("filter", {FORWARD: forward})]
    jumps = [Jump("filter", "FORWARD", f'-m comment --comment "nodelet: pod traffic" -j {FORWARD}')]
    if config.masquerade:
        kept = [net for net in _without_parts(_of(family, config.not_masqueraded)) if net not in pods]
        returns = [f"-d {net} -j RETURN" for net in (*pods, *kept, _MULTICAST[family])]
        changes.append(TableChange("nat", {POSTROUTING: [*returns, f"-g {PEERS}"]}))
        comment = '-m comment --comment "nodelet: pods to outside"'
        jumps += [
            Jump("nat", "POSTROUTING", f"-s {net} {comment} -j {POSTROUTING}", prepend=True) for net in own
        ]
    return changes, jumps


def plan_peers(peers: Sequence[str]) -> list[str]:
    """The rules of NODELET-PEERS for these addresses of one family, given with prefix length. Pure."""
    return [*(f"-d {peer} -j RETURN" for peer in sorted(peers)), _MASQUERADE]


def ensure_rules(config: NetworkConfig, peers: Sequence[str] | None = None) -> bool:
    """Make rules and jumps be as planned; True when some were missing.

    Args:
        config: the network.
        peers: addresses with prefix length that pods reach without masquerading: nodes. None leaves
            NODELET-PEERS alone if it is there: its content belongs to the overlay.

    Raises:
        ProcessFailed: iptables refused.
    """
    changed = False
    for family in _FAMILIES:
        changes, jumps = plan_rules(config, family)
        if not changes:
            continue
        if config.masquerade and (
            peers is not None or iptables.read_chain("nat", PEERS, family=family) is None
        ):
            own = [peer for peer in peers or () if (":" in peer) == (family == 6)]
            # First, so that the jump to it finds it: tables are changed in the order given.
            changed = iptables.ensure([TableChange("nat", {PEERS: plan_peers(own)})], family=family)
        changed = iptables.ensure(changes, jumps, family=family) or changed
    return changed


def ensure_once(config: NetworkConfig, boot_id: str) -> None:
    """Rules and kernel switches, unless this boot, namespace and configuration had them made before."""
    mark = _mark(replace(config, pod=RuntimeConfig()), boot_id, netns.identity())
    marker = config.state_dir / config.name / "firewall"
    with suppress(OSError):
        if marker.read_text() == mark:
            return
    marker.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with files.locked(marker.parent / "firewall.lock", wait=True):
        with suppress(OSError):
            if marker.read_text() == mark:
                return  # a parallel ADD has just done it
        write_switches(config)
        ensure_rules(config)
        files.write_atomic(marker, mark.encode(), sync=False)


@functools.lru_cache(maxsize=8)
def _mark(config: NetworkConfig, boot_id: str, namespace: tuple[int, int]) -> str:
    plans = [plan_rules(config, family) for family in _FAMILIES]
    return hashlib.sha256(repr((boot_id, namespace, plans)).encode()).hexdigest()


def write_switches(config: NetworkConfig, proc_sys: Path = Path("/proc/sys")) -> list[str]:
    """Turn on forwarding and filtering of bridged packets; returns what this kernel does not have.

    Without bridge-nf-call-iptables (module br_netfilter) a service whose backend is on the same bridge as
    its client is not answered.
    """
    missing = []
    for name, value, family in _SWITCHES:
        if any(subnet.version == family for subnet in config.subnets):
            try:
                (proc_sys / name).write_text(value)
            except OSError:
                missing.append(name.replace("/", "."))
    return missing


def remove() -> None:
    """Take all rules away (for `nodelet reset`)."""
    for family in _FAMILIES:
        with suppress(NotFound):
            iptables.remove({"nat": [POSTROUTING, PEERS], "filter": [FORWARD]}, family=family)


def _of(family: int, networks: tuple[IPNetwork, ...]) -> list[IPNetwork]:
    return [network for network in networks if network.version == family]


def _without_parts(networks: list[IPNetwork]) -> list[IPNetwork]:
    """Without those that lie inside another one, in a fixed order."""
    kept: list[IPNetwork] = []
    for network in sorted(set(networks), key=lambda net: (net.prefixlen, int(net.network_address))):
        if not any(network.subnet_of(other) for other in kept):  # type: ignore[arg-type]
            kept.append(network)
    return kept
