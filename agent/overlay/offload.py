"""Do the checksums of what pods send through the tunnel arrive whole?

Some network cards and kernels put a wrong checksum into UDP and TCP packets inside of VXLAN. The peer drops
them without a word, while ping, whose checksum is always computed by the kernel, goes through (flannel PR
1282, projectcalico/calico#3145). So each start tries both to a peer: an echo that is answered beside
datagrams that are not is a suspicion, and datagrams that arrive once the offload is off are the proof.

A datagram has arrived when the peer refuses it: nobody listens at that port.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress

from cni.vxlan import Peer
from host.rtnl import IPAddress

Probe = Callable[[IPAddress], Awaitable[bool]]
"""Whether something sent to that address is answered."""

MESSAGE = b"nodelet: does this checksum arrive whole?"
_PEERS = 3  # asked in turn, until one answers
_TRIES = 3
_ANSWER_SECONDS = 1.0
_PORT = 33434  # the first port of traceroute, where nobody listens


def tunnels(peers: Iterable[Peer]) -> list[IPAddress]:
    """Addresses of the tunnel devices of those that are reached through tunnels, in IPv4. Pure."""
    return [peer.subnets[0].network_address for peer in peers if peer.mac and peer.subnets[0].version == 4]


async def mend(
    peers: Sequence[IPAddress], *, echo: Probe, datagram: Probe, offload: Callable[[bool], None]
) -> bool:
    """Turn the tunnel's checksum offload off if that is what keeps datagrams from arriving.

    Args:
        peers: addresses of tunnel devices.
        echo, datagram: send one packet through the tunnel.
        offload: turns the offload of our tunnel device on or off; on at the start.

    Returns:
        Whether it had to be turned off. It is on if no peer could tell.
    """
    suspects = []
    for peer in peers[:_PEERS]:
        if await _answers(datagram, peer):
            return False
        if await _answers(echo, peer):
            suspects.append(peer)
    if not suspects:
        return False
    offload(False)
    for peer in suspects:
        if await _answers(datagram, peer):
            return True
    offload(True)  # a firewall, or a peer that keeps silent: nothing of ours
    return False


async def _answers(probe: Probe, peer: IPAddress) -> bool:
    for _ in range(_TRIES):  # any network loses a packet now and then
        if await probe(peer):
            return True
    return False


async def datagram(host: IPAddress) -> bool:
    """Send a UDP datagram to a port where nobody listens; whether it was refused, and so has arrived."""
    family = socket.AF_INET if host.version == 4 else socket.AF_INET6
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        with suppress(OSError):
            sock.connect((str(host), _PORT))
            sock.send(MESSAGE)
            with suppress(TimeoutError):
                await asyncio.wait_for(loop.sock_recv(sock, 1), _ANSWER_SECONDS)
            return False
        return True
