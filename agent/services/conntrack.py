"""UDP flows that still lead to endpoints that are gone.

A UDP client that keeps its source port stays on its first endpoint for as long as it sends, because the
kernel translates by connection (k/k#48370, #139628: black holes for hours). So after each change of a UDP
Service, flows to its virtual addresses that do not end at a serving endpoint are deleted; a flow that ends at
one is left alone, as with TCP. The same rule covers a Service that had no endpoints when the flow began.

`parse` and `stale` are pure; conntrack(8) does the listing and deleting.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from agent.services.picture import VirtualPort
from host import helpers
from host.errors import NotFound
from host.rules.iptables import Family

_log = logging.getLogger(__name__)
_FIELD = re.compile(r"(src|dst|sport|dport)=(\S+)")
_FAMILY: Mapping[Family, str] = {4: "ipv4", 6: "ipv6"}


@dataclass(frozen=True)
class Flow:
    """One UDP entry: where it was sent first, and who answers."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    reply_source: str
    reply_port: int


def parse(text: str) -> Iterator[Flow]:
    """The flows in the output of `conntrack -L -p udp`; lines that are none are skipped."""
    for line in text.splitlines():
        fields = _FIELD.findall(line)
        if len(fields) < 8:
            continue
        first, reply = dict(fields[:4]), dict(fields[4:8])
        yield Flow(
            source=first["src"],
            source_port=int(first["sport"]),
            destination=first["dst"],
            destination_port=int(first["dport"]),
            reply_source=reply["src"],
            reply_port=int(reply["sport"]),
        )


def stale(flows: Iterable[Flow], ports: Iterable[VirtualPort]) -> list[Flow]:
    """The flows to a virtual UDP address that do not end at one of its serving endpoints.

    A node port is matched by its number alone, because the node's addresses are not known here; so those of a
    Service without any endpoint are left to time out rather than risk a flow that is not ours.
    """
    by_address: dict[tuple[str, int], frozenset[str]] = {}
    by_node_port: dict[int, frozenset[str]] = {}
    for port in ports:
        if port.protocol != "udp":
            continue
        for ip in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips):
            by_address[ip, port.port] = port.serving
        if port.node_port and port.serving:
            by_node_port[port.node_port] = port.serving
    found = []
    for flow in flows:
        serving = by_address.get((flow.destination, flow.destination_port))
        if serving is None:
            serving = by_node_port.get(flow.destination_port)
        if serving is not None and _address(flow) not in serving:
            found.append(flow)
    return found


def _address(flow: Flow) -> str:
    ip = flow.reply_source
    return f"[{ip}]:{flow.reply_port}" if ":" in ip else f"{ip}:{flow.reply_port}"


def _group(flow: Flow) -> tuple[str, int, str]:
    """What stale flows of one lost endpoint have in common: one deletion takes them all."""
    return flow.destination, flow.destination_port, flow.reply_source


async def reconcile(ports: Iterable[VirtualPort], *, family: Family = 4) -> int:
    """Delete the stale UDP flows of this network namespace.

    Returns:
        how many were found.

    Raises:
        HostError: conntrack(8) failed; a missing program is only logged.
    """
    wanted = [port for port in ports if port.protocol == "udp"]
    if not wanted:
        return 0
    base = ["-f", _FAMILY[family], "-p", "udp"]
    try:
        listing = await helpers.run_async(["conntrack", "-L", *base])
    except NotFound:
        _log.warning("no conntrack program: UDP clients of Services may stick to endpoints that are gone")
        return 0
    found = stale(parse(listing.stdout.decode(errors="replace")), wanted)
    for destination, port, answering in sorted({_group(flow) for flow in found}):
        to = ["--orig-dst", destination, "--orig-port-dst", str(port), "--reply-src", answering]
        # Status 1 means there is no such entry any more: it timed out meanwhile.
        await helpers.run_async(["conntrack", "-D", *base, *to], check=False)
    if found:
        _log.info("deleted stale UDP flows count=%d", len(found))
    return len(found)
