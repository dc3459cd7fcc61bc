"""Which of the machine's addresses is the node's.

The address the kernel would use towards the API server is one that can reach the cluster; a first-interface
rule picks Vagrant's NAT address, which is the same on every machine. `--node-ip` overrides it. No packet is
sent: a connected UDP socket only asks for the route.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from agent.api.cluster import NodeAddress
from host.errors import InputError

_NAT_HABIT = ipaddress.ip_network("10.0.2.0/24")


def towards(server: str) -> str:
    """Our address on the route to a server URL.

    Raises:
        OSError: the name cannot be resolved or there is no route; `strerror` says which.
    """
    parts = urlsplit(server)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return towards_address(parts.hostname or "", port)


def towards_address(host: str, port: int = 443) -> str:
    """Our address on the route to another one, or to a name. Raises OSError as `towards` does."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def node_ips(configured: Sequence[str], *, server: str) -> tuple[str, ...]:
    """The node's addresses, the first is the main one.

    `configured` is `--node-ip`: one address, or one of each family. Without it, or with 0.0.0.0 or ::, the
    address towards `server` is taken.

    Raises:
        InputError: more than two addresses, or two of one family.
        OSError: no route to the server.
    """
    given = [address for address in configured if not ipaddress.ip_address(address).is_unspecified]
    families = {ipaddress.ip_address(address).version for address in given}
    if len(given) > 2 or len(families) != len(given):
        raise InputError(f"flag --node-ip: one address, or one IPv4 and one IPv6, not {', '.join(given)}")
    return tuple(given) if given else (towards(server),)


def warning(ips: Sequence[str], configured: Sequence[str]) -> str:
    """A line for the log when the address is likely to be shared by many machines, else ""."""
    if not configured and ips and ipaddress.ip_address(ips[0]) in _NAT_HABIT:
        return f"node address {ips[0]} looks like VirtualBox NAT, other nodes have it too: set --node-ip"
    return ""


def status_addresses(ips: Sequence[str], hostname: str) -> tuple[NodeAddress, ...]:
    """`status.addresses` of the node."""
    internal = tuple(NodeAddress(type="InternalIP", address=ip) for ip in ips)
    return (*internal, NodeAddress(type="Hostname", address=hostname))
