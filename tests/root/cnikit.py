"""Commands of our CNI plugin on a machine of a test's LAN, and what they left there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lan import Machine

from cni import entry
from cni.ipam import Leases, read_boot_id
from host.netlink import Netlink


def call(node: Machine, command: str, name: str, path: Path | str = "", **config: Any) -> dict[str, Any]:
    """One command on a node for the container `name`."""
    return node.run(
        lambda: entry.execute(
            command, config=node.config(**config), container_id=name, netns=str(path), ifname="eth0"
        )
    )


def leases(node: Machine) -> dict[str, str]:
    """Address to container id."""
    found = Leases(node.state / "nodelet", boot_id=read_boot_id()).listed()
    return {str(lease.address): lease.owner.container_id if lease.owner else "?" for lease in found}


def ports(node: Machine) -> set[str]:
    """Names of the bridge's ports on a node."""
    with Netlink(node.netns) as netlink:
        return {link.name for link in netlink.links() if link.kind == "veth" and link.name != "eth0"}
