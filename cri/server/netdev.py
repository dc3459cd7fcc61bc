"""Counters of a pod's network interfaces (/proc/<pid>/net/dev, proc_pid_net(5))."""

from __future__ import annotations

from dataclasses import dataclass

from cri.server.core import Core
from cri.state.records import SandboxState
from cri.state.store import Sandbox
from host.errors import HostError


@dataclass(frozen=True, kw_only=True)
class LinkCounters:
    """What an interface has received and sent."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


def parse_net_dev(text: str) -> tuple[LinkCounters, ...]:
    """The interfaces by name, loopback left out; lines of another form are passed over."""
    found = []
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        words = rest.split()
        name = name.strip()
        if not colon or name == "lo" or len(words) < 12 or not all(word.isdecimal() for word in words):
            continue
        numbers = [int(word) for word in words]
        names = ("bytes", "packets", "errors", "dropped")
        received = {f"rx_{key}": number for key, number in zip(names, numbers[:4], strict=True)}
        sent = {f"tx_{key}": number for key, number in zip(names, numbers[8:12], strict=True)}
        found.append(LinkCounters(name=name, **received, **sent))
    return tuple(sorted(found, key=lambda link: link.name))


async def links_of(core: Core, sandbox: Sandbox) -> tuple[LinkCounters, ...]:
    """The interfaces of a ready pod that has a network of its own; none of another."""
    if not sandbox.record.netns or sandbox.record.state is not SandboxState.READY:
        return ()
    try:
        facts = await core.runtime.sandbox_facts(sandbox.id)
        with open(f"/proc/{facts.pid}/net/dev", encoding="ascii") as file:  # noqa: ASYNC230  (proc never blocks)
            return parse_net_dev(file.read())
    except (HostError, OSError):
        return ()  # it ended meanwhile
