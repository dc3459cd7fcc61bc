"""The result of the plugins before this one (`prevResult`), which anybody may have written: checked, joined.

"A plugin provided a prevResult … must output it as its result, with any possible modifications" (CNI 1.1.0,
section 3). What CHECK and DEL do follows from our own leases and devices, never from what a result claims.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from typing import Any

from cni.runtimeconfig import invalid
from host.rtnl import IPAddress

_LISTS = ("interfaces", "ips", "routes")
_MAX_ENTRIES = 1000


def parse_previous(value: object) -> dict[str, Any]:
    """`prevResult` from the configuration; {} without one.

    Raises:
        CniError: 7, naming the field: not a result, an address that is none, an interface that is not listed.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise invalid("prevResult", "not an object")
    for name in _LISTS:
        entries = value.get(name) or []
        if not isinstance(entries, list) or len(entries) > _MAX_ENTRIES:
            raise invalid(f"prevResult.{name}", f"not a list of at most {_MAX_ENTRIES}")
        if not all(isinstance(entry, Mapping) for entry in entries):
            raise invalid(f"prevResult.{name}", "an entry is not an object")
    interfaces = value.get("interfaces") or []
    if not all(isinstance(entry.get("name"), str) for entry in interfaces):
        raise invalid("prevResult.interfaces", "one has no name")
    for entry in value.get("ips") or []:
        _check_ip(entry, len(interfaces))
    if not isinstance(value.get("dns") or {}, Mapping):
        raise invalid("prevResult.dns", "not an object")
    return dict(value)


def _check_ip(entry: Mapping[str, Any], interfaces: int) -> None:
    address, index = entry.get("address"), entry.get("interface")
    try:
        if not isinstance(address, str):
            raise ValueError(f"{address!r} is not a string")
        ipaddress.ip_interface(address)
    except ValueError as exc:
        raise invalid("prevResult.ips.address", str(exc)) from exc
    if index is not None and (type(index) is not int or not 0 <= index < interfaces):
        raise invalid("prevResult.ips.interface", f"{index!r} is not one of the {interfaces} interfaces")


def joined(previous: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Both results as one: ours after what was there, its interface numbers moved on. Pure."""
    if not previous:
        return dict(own)
    offset = len(previous.get("interfaces") or [])
    ips = [{**entry, "interface": entry["interface"] + offset} for entry in own["ips"]]
    return {
        **own,
        "interfaces": [*(previous.get("interfaces") or []), *own["interfaces"]],
        "ips": [*(previous.get("ips") or []), *ips],
        "routes": [*(previous.get("routes") or []), *own["routes"]],
        "dns": own["dns"] or previous.get("dns") or {},
    }


def check_claims(
    previous: Mapping[str, Any], *, ifname: str, netns: str, addresses: Collection[IPAddress]
) -> str:
    """Where a result disagrees with what an attachment has, as text for CHECK; '' where it does not. Pure.

    A plugin after us may have added to it; that is not ours to judge.
    """
    interfaces = previous.get("interfaces") or []
    ours = {
        number
        for number, entry in enumerate(interfaces)
        if entry["name"] == ifname and entry.get("sandbox") == netns
    }
    if interfaces and not ours:
        return f"prevResult knows no {ifname} in {netns}"
    entries = previous.get("ips") or []
    claimed = {
        ipaddress.ip_interface(entry["address"]).ip for entry in entries if entry.get("interface") in ours
    }
    if missing := set(addresses) - claimed if entries else None:
        return f"prevResult has not {', '.join(sorted(map(str, missing)))} for {ifname}"
    return ""
