"""Results as the CNI specification words them, for the version the caller asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from host.rtnl import IPAddress, IPInterface


def add_result(
    version: str,
    *,
    bridge: tuple[str, str],
    host_end: tuple[str, str],
    pod_end: tuple[str, str],
    netns: str,
    mtu: int,
    addresses: Sequence[tuple[IPInterface, IPAddress]],
    dns: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The result of ADD ("Success", section 5).

    Args:
        version: of the specification; those before 1.0.0 tell each address's family too, those from 1.1.0
            on each interface's MTU.
        bridge: name and MAC of the bridge.
        host_end: name and MAC of the veth end in the bridge.
        pod_end: name and MAC of the pod's interface.
        netns: path of the pod's network namespace.
        mtu: of the pair, in bytes.
        addresses: of the pod, each with its gateway.
        dns: as the runtime gave it, in the words of a result.
    """
    interfaces: list[dict[str, Any]] = [
        {"name": bridge[0], "mac": bridge[1]},
        {"name": host_end[0], "mac": host_end[1]},
        {"name": pod_end[0], "mac": pod_end[1], "sandbox": netns},
    ]
    if version == "1.1.0":
        for interface in interfaces:
            interface["mtu"] = mtu
    ips: list[dict[str, Any]] = []
    for address, gateway in addresses:
        family = {} if version >= "1.0.0" else {"version": str(address.version)}
        ips.append({**family, "address": str(address), "gateway": str(gateway), "interface": 2})
    routes = [
        {"dst": "0.0.0.0/0" if gateway.version == 4 else "::/0", "gw": str(gateway)}
        for _, gateway in addresses
    ]
    return {"cniVersion": version, "interfaces": interfaces, "ips": ips, "routes": routes, "dns": dict(dns)}
