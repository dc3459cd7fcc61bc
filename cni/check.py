"""What CHECK looks at in the kernel: whether a pod's devices are as ADD made them; the first fault is named.

    bridge        there
    host end      an active port of it, with the hairpin that is configured
    spoof guard   the program of this pod's MAC and addresses, asked before any other filter
    limits        the rates asked for, each where it works
    pod's end     there and up, with its MAC, MTU and addresses, and a default route by the gateway

Expected is what follows from configuration and leases, never what a result or the device itself claims.

Not for: the result before (cni.previous), host ports (cni.hostports).
"""

from __future__ import annotations

from collections.abc import Sequence

from cni import bandwidth, spoofguard
from cni.config import Attachment, NetworkConfig, gateway
from cni.wiring import GUARD_PRIORITY, host_name, pod_mac
from host import traffic
from host.netlink import Netlink
from host.rtnl import IPAddress, Link


def devices(
    netlink: Netlink,
    network: NetworkConfig,
    attachment: Attachment,
    *,
    pod_netns: str,
    addresses: Sequence[IPAddress],
) -> str:
    """What is wrong with an attachment that ADD made, as text for CHECK; '' when nothing is.

    Args:
        netlink: of the node's namespace.
        network: as at ADD, what the runtime asks for the pod included.
        attachment: whose.
        pod_netns: path of its namespace.
        addresses: those leased to it.

    Raises:
        NotFound: there is no such namespace.
    """
    name = host_name(attachment)
    bridge, host_end = netlink.find_link(network.bridge), netlink.find_link(name)
    if bridge is None:
        return f"bridge {network.bridge} is missing"
    if host_end is None:
        return f"{name} is missing"
    if host_end.master != bridge.index or not host_end.up:
        return f"{name} is not an active port of {network.bridge}"
    if host_end.hairpin != network.hairpin:
        return f"hairpin of {name} is {_switch(host_end.hairpin)}, not {_switch(network.hairpin)}"
    mac = pod_mac(network, addresses)
    return (
        _guard(netlink, network, host_end, mac=mac, addresses=addresses)
        or bandwidth.check(netlink, attachment, network.pod, host_end=host_end.index)
        or _pod_end(network, attachment, pod_netns, mac=mac, addresses=addresses)
    )


def _switch(value: bool | None) -> str:
    return "on" if value else "off"


def _guard(
    netlink: Netlink, network: NetworkConfig, host_end: Link, *, mac: str, addresses: Sequence[IPAddress]
) -> str:
    if not network.spoof_protection:
        return ""
    filters = netlink.dump(traffic.dump_ingress_filters(host_end.index), traffic.parse_filter)
    first = min((found for found in filters if found), key=lambda found: found.priority, default=None)
    expected = traffic.Filter(GUARD_PRIORITY, tuple(spoofguard.program(mac, addresses)))
    return "" if first == expected else f"{host_end.name} has lost its spoof guard"


def _pod_end(
    network: NetworkConfig,
    attachment: Attachment,
    pod_netns: str,
    *,
    mac: str,
    addresses: Sequence[IPAddress],
) -> str:
    ifname = attachment.ifname
    with Netlink(pod_netns) as inside:
        link = inside.find_link(ifname)
        if link is None or not link.up:
            return f"{ifname} is missing or down in the pod"
        present = {found.address.ip for found in inside.addresses(link.index)}
        routes = [route for route in inside.routes() if route.destination.prefixlen == 0]
    if missing := set(addresses) - present:
        return f"{ifname} has lost {', '.join(sorted(map(str, missing)))}"
    if link.mac != mac:
        return f"{ifname} has the MAC {link.mac}, not {mac}"
    if network.mtu and link.mtu != network.mtu:
        return f"{ifname} has an MTU of {link.mtu} bytes, not {network.mtu}"
    for subnet in network.subnets:
        if not any((route.index, route.gateway) == (link.index, gateway(subnet).ip) for route in routes):
            return f"the pod has lost its default route by {gateway(subnet).ip}"
    return ""
