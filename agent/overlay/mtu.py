"""Do packets of the full size reach our peers? A path that drops them silently breaks only large transfers.

Each peer is sent two ICMP echoes that must not be fragmented: a small one and one of the underlay's MTU. Only
the pair tells something: both lost may be a firewall or a node that is down; the small one back and the large
one lost, three times, is a path with a smaller MTU than this node's device claims.

Not for: finding the right MTU. The message says what to set.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType

from host.errors import from_oserror
from host.rtnl import IPAddress

Echo = Callable[[IPAddress, int], Awaitable[bool]]
"""Whether an unfragmented IP packet of that many bytes is answered."""

SMALL = 64
"""Bytes of a packet that no path is too narrow for."""
_HEADERS = 28  # IPv4 20, ICMP 8
_ANSWER_SECONDS = 1.0
_PARALLEL = 16
_TRIES = 3  # of each size: any network loses a packet now and then
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3  # linux/in.h: set DF, do not trust the path MTU remembered
_ECHO_REQUEST, _ECHO_REPLY = 8, 0


async def find_narrow(peers: Mapping[str, IPAddress], mtu: int, echo: Echo) -> dict[str, str]:
    """Peers by name that answer small packets but not those of `mtu` bytes, with a message for each.

    Args:
        peers: underlay addresses by node name; those that are not IPv4 are left out.
        mtu: of the underlay device, in bytes.
        echo: sends one packet.
    """
    limit = asyncio.Semaphore(_PARALLEL)

    async def answers(host: IPAddress, size: int) -> bool:
        for _ in range(_TRIES):
            if await echo(host, size):
                return True
        return False

    async def is_narrow(host: IPAddress) -> bool:
        async with limit:
            return await answers(host, SMALL) and not await answers(host, mtu) and await answers(host, SMALL)

    names = [name for name in sorted(peers) if peers[name].version == 4]
    narrow = await asyncio.gather(*(is_narrow(peers[name]) for name in names))
    return {
        name: f"node {name} ({peers[name]}): packets of {mtu} bytes are lost on the way, small ones are not;"
        " set overlay.mtu to the path's MTU less 50"
        for name, found in zip(names, narrow, strict=True)
        if found
    }


class IcmpEcho:
    """Echo over a raw ICMP socket (CAP_NET_RAW), for one event loop. Use as a context manager and call it."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        except OSError as exc:
            raise from_oserror(exc, "open an ICMP socket") from exc
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        self._socket.setblocking(False)
        self._identity = os.getpid() & 0xFFFF
        self._numbers = itertools.count(1)
        self._waiting: dict[tuple[str, int], asyncio.Future[None]] = {}

    def __enter__(self) -> IcmpEcho:
        asyncio.get_running_loop().add_reader(self._socket, self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    async def __call__(self, host: IPAddress, size: int) -> bool:
        """See Echo. A packet too large for our own device counts as lost."""
        number = next(self._numbers) & 0xFFFF
        key = (str(host), number)
        self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            self._socket.sendto(request(self._identity, number, size - _HEADERS), (str(host), 0))
            await asyncio.wait_for(self._waiting[key], _ANSWER_SECONDS)
        except (OSError, TimeoutError):
            return False
        finally:
            del self._waiting[key]
        return True

    def _read(self) -> None:
        try:
            data, (sender, _port) = self._socket.recvfrom(65535)
        except OSError:
            return  # an ICMP error for an earlier packet, which its timeout tells as well
        answer = reply(data)
        if answer and answer[0] == self._identity:
            waiting = self._waiting.get((sender, answer[1]))
            if waiting and not waiting.done():
                waiting.set_result(None)


def request(identity: int, number: int, payload: int) -> bytes:
    """An ICMP echo request (RFC 792) with that many bytes of payload. Pure."""
    body = bytes(payload)
    head = struct.pack("!BBHHH", _ECHO_REQUEST, 0, 0, identity, number)
    return struct.pack("!BBHHH", _ECHO_REQUEST, 0, _checksum(head + body), identity, number) + body


def reply(packet: bytes) -> tuple[int, int] | None:
    """Identity and number of an echo reply in an IPv4 packet; None for anything else. Pure."""
    start = (packet[0] & 0x0F) * 4 if packet else 0
    if len(packet) < start + 8 or start < 20 or packet[start] != _ECHO_REPLY:
        return None
    identity, number = struct.unpack_from("!HH", packet, start + 4)
    return identity, number


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
