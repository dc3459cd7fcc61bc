"""How many addresses of each range are leased and free, from the folder of leases alone. Reads, never locks.

A lease is a file whose name begins with its address (cni.ipam). Not for: whose they are.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from host.rtnl import IPNetwork

_KEPT = {4: 3, 6: 2}  # network, gateway and (IPv4) broadcast address


@dataclass(frozen=True)
class Usage:
    """Of one range."""

    subnet: IPNetwork
    leased: int
    free: int


def read(state: Path, subnets: Iterable[IPNetwork]) -> list[Usage]:
    """The usage of a network's ranges, given its state folder; all free where there is no folder yet."""
    try:
        names = os.listdir(state / "leases")
    except FileNotFoundError:
        names = []
    leased = [ip for ip in (_address(name) for name in names) if ip is not None]
    found = []
    for subnet in subnets:
        count = sum(ip in subnet for ip in leased)
        found.append(Usage(subnet, count, max(0, subnet.num_addresses - _KEPT[subnet.version] - count)))
    return found


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.partition(",")[0])
    except ValueError:
        return None
