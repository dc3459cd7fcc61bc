"""Signs that another agent enforces NetworkPolicy on this node. Two that both filter would be one too many.

A sign is a pod of the agent's DaemonSet here, one of its devices, or its nftables table. Names as the
projects' own manifests and sources give them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from agent.api.structs import Pod
from host import processes
from host.netlink import Netlink


@dataclass(frozen=True)
class _Signs:
    """What one agent is known by: regular expressions that match the whole name."""

    daemon_set: str
    device: str = ""
    table: str = ""


_AGENTS = {
    "calico": _Signs(r"calico-node|canal", r"cali[0-9a-f]{11}|vxlan\.calico", "calico"),
    "cilium": _Signs("cilium", "cilium_host|cilium_net|cilium_vxlan"),
    "kube-network-policies": _Signs("kube-network-policies.*", table="kube-network-policies.*"),
    "kindnet": _Signs("kindnet", table="kindnet-network-policies"),
    "kube-router": _Signs("kube-router.*", "kube-bridge"),
    "antrea": _Signs("antrea-agent", "antrea-gw0"),
    "weave": _Signs("weave-net", "weave"),
    "ovn-kubernetes": _Signs("ovnkube-node.*", "ovn-k8s-mp0"),
}


def other_agent(pods: Iterable[Pod], devices: Iterable[str], tables: Iterable[str]) -> str:
    """What shows that another agent owns this node's policies, for people; "" when nothing does. Pure.

    Args:
        pods: of this node.
        devices: names of its network devices.
        tables: names of its nftables tables.
    """
    owners = (owner for pod in pods for owner in pod.metadata.owner_references)
    daemon_sets = {owner.name for owner in owners if owner.kind == "DaemonSet"}
    for agent, signs in _AGENTS.items():
        for what, pattern, present in (
            ("DaemonSet", signs.daemon_set, daemon_sets),
            ("device", signs.device, set(devices)),
            ("nftables table", signs.table, set(tables)),
        ):
            found = [name for name in sorted(present) if pattern and re.fullmatch(pattern, name)]
            if found:
                return f"{agent} ({what} {found[0]})"
    return ""


def on_this_node(pods: Iterable[Pod]) -> str:
    """`other_agent` for the network namespace of the calling thread. Blocks for a few milliseconds.

    Raises:
        HostError: devices or tables cannot be read.
    """
    with Netlink() as netlink:
        devices = [link.name for link in netlink.links()]
    listed = processes.run(["nft", "list", "tables"]).stdout.decode(errors="replace")
    return other_agent(pods, devices, [line.split()[-1] for line in listed.splitlines() if line.strip()])
