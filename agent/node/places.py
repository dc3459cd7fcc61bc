"""Which of the machine's addresses the node and its pod network have, and when they have become others.

Without a word about it, both have the address towards the API server. `--node-ip` fixes the node's.
`overlay.iface`, `ifaceRegex` and `ifaceCanReach` (flannel has flags of these names) choose the network device
of the pod network, and with it the node's address where `--node-ip` says nothing.

An agent whose addresses have changed starts itself anew: certificates, rules, pods' host addresses and
annotations all follow from them, and a restart is what every part of it is made for. Containers run on.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from agent.config.nodelet import OverlaySettings
from agent.node import addresses
from host.clocks import Clock
from host.errors import InputError
from host.netlink import Netlink
from host.rtnl import IPAddress

LOOK_SECONDS = 5.0
"""Between two looks at the machine's addresses; what two of them agree on is believed."""


@dataclass(frozen=True)
class Interface:
    """A network device and the addresses others may reach it by, the kernel's first one first."""

    name: str
    addresses: tuple[IPAddress, ...]

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.addresses)) or 'no address'})"


@dataclass(frozen=True)
class Places:
    """Addresses, the main one first: `node` for the Node's status, `underlay` for the pod network."""

    node: tuple[str, ...]
    underlay: tuple[str, ...]


class NoAddress(OSError):
    """The chosen device has no address now; it may get one."""


def interfaces() -> list[Interface]:
    """The devices of this network namespace. Raises HostError."""
    with Netlink() as netlink:
        found = netlink.addresses()
        return [
            Interface(
                link.name,
                tuple(
                    each.address.ip
                    for each in found
                    if each.index == link.index
                    and not (each.address.ip.is_link_local or each.address.ip.is_loopback)
                ),
            )
            for link in netlink.links()
        ]


def find(
    wished: OverlaySettings,
    *,
    node_ips: Sequence[str],
    server: str,
    devices: Callable[[], Sequence[Interface]] = interfaces,
) -> Places:
    """Both kinds of addresses, as they are now.

    Args:
        wished: of the overlay: which device.
        node_ips: `--node-ip`.
        server: URL of the API server.
        devices: asked only where a device is wished for.

    Raises:
        InputError: there is no such device, or `node_ips` cannot be had together.
        OSError: no route, or no address yet.
    """
    underlay: tuple[str, ...] = ()
    if wished.iface_can_reach:
        underlay = (addresses.towards_address(wished.iface_can_reach),)
    elif wished.iface or wished.iface_regex:
        chosen = choose(wished, devices())
        if not chosen.addresses:
            raise NoAddress(f"device {chosen.name} has no address yet")
        first = {address.version: str(address) for address in reversed(chosen.addresses)}
        underlay = tuple(first[version] for version in (4, 6) if version in first)
    if any(not ipaddress.ip_address(text).is_unspecified for text in node_ips) or not underlay:
        node = addresses.node_ips(node_ips, server=server)
    else:
        node = underlay[:1]
    return Places(node, underlay or node)


def choose(wished: OverlaySettings, devices: Sequence[Interface]) -> Interface:
    """The device by its name or one of its addresses, or the first that the expression matches.

    Raises:
        InputError: there is none; the message lists what there is.
    """
    if wished.iface:
        for device in devices:
            if wished.iface == device.name or wished.iface in map(str, device.addresses):
                return device
        field, word = "iface", wished.iface
    else:
        expression = re.compile(wished.iface_regex)
        for device in devices:
            if any(expression.search(text) for text in (device.name, *map(str, device.addresses))):
                return device
        field, word = "ifaceRegex", wished.iface_regex
    there = "; ".join(str(device) for device in devices if device.addresses)
    raise InputError(f"overlay.{field}: nothing is {word!r} here; there are {there}")


def here() -> frozenset[str]:
    """Every address of this network namespace. Raises HostError."""
    with Netlink() as netlink:
        return frozenset(str(each.address.ip) for each in netlink.addresses())


async def moved(
    look: Callable[[], Places],
    now: Places,
    *,
    clock: Clock,
    present: Callable[[], Collection[str]] = here,
) -> Places:
    """Return when an address of ours is gone and two looks in a row have found the same others.

    As long as it is there nothing has changed, wherever the way to the API server leads: the name of a server
    may lead elsewhere every time it is asked for. What cannot be told is no change.

    Args:
        look: finds the addresses.
        now: those that the agent has.
        present: every address of the machine.
    """
    before = now
    while True:
        await clock.sleep(LOOK_SECONDS)
        try:
            if not {*now.node, *now.underlay}.difference(present()):
                before = now
                continue
            found = await asyncio.to_thread(look)  # a server's name may have to be resolved
        except (OSError, InputError):
            before = now
            continue
        if found != now and found == before:
            return found
        before = found
