"""How fast a pod may send and receive (capability `bandwidth`), as queues on the node's side of its veth.

    to the pod      tbf on the node's end of the veth
    from the pod    filter on that end --redirect--> ifb device, tbf on it, then on into the bridge

What a pod sends arrives at the node as input, which cannot be queued; hence the second device. Both are out
of the pod's reach, whatever its capabilities. The device goes before the veth, so that a veth that is gone
has none.

Not for: reading the configuration (cni.runtimeconfig), and what a pod may send at all (cni.spoofguard).
"""

from __future__ import annotations

import hashlib

from cni.config import Attachment
from cni.runtimeconfig import Rate, RuntimeConfig
from host import nlmsg, rtnl, traffic
from host.errors import Exists
from host.linkremoval import remove_link
from host.netlink import Netlink

PREFIX = "nlbw"
PRIORITY = 2  # after the spoof guard
_LATENCY_SECONDS = 0.025  # as the reference plugin's
_SMALLEST_BUCKET = 1 << 16  # bytes: a smaller one could not let the largest packet pass


def shaper_name(attachment: Attachment) -> str:
    """Name of the device that queues what a pod sends. Pure."""
    key = f"{attachment.container_id}/{attachment.ifname}".encode()
    return PREFIX + hashlib.sha256(key).hexdigest()[:11]


def apply(
    netlink: Netlink, attachment: Attachment, limits: RuntimeConfig, *, host_end: int, alias: str
) -> None:
    """Set a pod's limits on the node's end of its veth, which has a clsact.

    Args:
        netlink: of the node's namespace.
        attachment: whose.
        limits: what to set: its ingress is what the pod receives, its egress what it sends.
        host_end: index of the node's end.
        alias: of the second device, for people and for GC.
    """
    if limits.ingress:
        netlink.execute(_bucket(host_end, limits.ingress))
    if limits.egress:
        name = shaper_name(attachment)
        netlink.execute(traffic.add_ifb(name), rtnl.set_link(name, up=True, alias=alias), ignore=(Exists,))
        shaper = netlink.get_link(name).index
        netlink.execute(
            _bucket(shaper, limits.egress), traffic.redirect_ingress(host_end, PRIORITY, target=shaper)
        )


def remove(netlink: Netlink, attachment: Attachment) -> None:
    """Remove the second device; the rest goes with the veth. None is success."""
    if netlink.find_link(shaper_name(attachment)):
        remove_link(shaper_name(attachment))


def check(netlink: Netlink, attachment: Attachment, limits: RuntimeConfig, *, host_end: int) -> str:
    """Which of a pod's limits is not in force, as text for CHECK; '' when all are."""
    if not limits.ingress and not limits.egress:
        return ""
    rates = {
        bucket.index: bucket.rate
        for bucket in netlink.dump(traffic.dump_queues(), traffic.parse_bucket)
        if bucket
    }
    if limits.ingress and rates.get(host_end) != _bytes(limits.ingress):
        return f"what it receives is not limited to {limits.ingress.rate} bits a second"
    if limits.egress:
        shaper = netlink.find_link(shaper_name(attachment))
        if shaper is None or rates.get(shaper.index) != _bytes(limits.egress):
            return f"what it sends is not limited to {limits.egress.rate} bits a second"
        filters = netlink.dump(traffic.dump_ingress_filters(host_end), traffic.parse_filter)
        if not any(found and (found.priority, found.target) == (PRIORITY, shaper.index) for found in filters):
            return f"what it sends does not pass {shaper.name}, which limits it"
    return ""


def _bucket(index: int, limit: Rate) -> nlmsg.Request:
    burst = max(limit.burst // 8, _SMALLEST_BUCKET)
    return traffic.set_rate(index, rate=_bytes(limit), burst=burst, latency=_LATENCY_SECONDS)


def _bytes(limit: Rate) -> int:
    """A second."""
    return max(limit.rate // 8, 1)
