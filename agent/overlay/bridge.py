"""The pods' bridge after somebody else's hand was on it: its addresses, its ports, or the whole of it.

The CNI plugin makes the bridge with a node's first pod, and puts each pod's host end into it. A bridge that
is deleted takes the pods' network with it although every veth pair is still there.
"""

from __future__ import annotations

from collections.abc import Sequence

from cni.config import ALIAS, mac_for
from host import rtnl
from host.errors import Exists, NotFound
from host.netlink import Netlink
from host.rtnl import IPInterface, Link


def host_ends(links: Sequence[Link]) -> list[Link]:
    """The node's ends of pods' interfaces, which say so in their alias. Pure."""
    return [link for link in links if link.kind == "veth" and link.alias.startswith(f"{ALIAS} ")]


def keep(netlink: Netlink, name: str, wanted: Sequence[IPInterface], *, mtu: int) -> list[str]:
    """Give the bridge, where there are pods, what it has lost; what that was.

    Args:
        netlink: of the node's network namespace.
        name: of the bridge.
        wanted: its addresses, the gateways of the pods' ranges.
        mtu: of pods, in bytes.
    """
    bridge = netlink.find_link(name)
    if bridge is not None and bridge.kind != "bridge":
        return []  # CNI's STATUS tells of it
    lost, ends = [], host_ends(netlink.links())
    if bridge is None:
        if not ends:
            return []  # it is made with the first pod
        lost.append("itself")
        # The MAC that it was made with: pods know their gateway by it.
        netlink.execute(rtnl.add_bridge(name, mac=mac_for(wanted[0].ip), mtu=mtu), ignore=(Exists,))
        bridge = netlink.get_link(name)
    present = {found.address for found in netlink.addresses(bridge.index)}
    missing = [address for address in wanted if address not in present]
    requests = [] if bridge.up else [rtnl.set_link(name, up=True)]
    requests += [rtnl.address(bridge.index, address) for address in missing]
    outside = [end for end in ends if end.master != bridge.index]
    for end in outside:
        requests.append(rtnl.set_link(end.name, master=bridge.index))
        requests.append(rtnl.set_link(end.name, hairpin=True))
    if requests:
        netlink.execute(*requests, ignore=(Exists, NotFound))
    lost += [] if bridge.up else ["up"]
    return [*lost, *map(str, missing), *(f"port {end.name}" for end in outside)]
