"""When the tunnel's checksum offload is turned off, and when it is left alone."""

from __future__ import annotations

import ipaddress

import pytest

from agent.overlay import offload
from cni.vxlan import Peer

ONE, TWO = ipaddress.ip_address("10.244.1.0"), ipaddress.ip_address("10.244.2.0")


class Path:
    """The way to peers: which of them answer, and what becomes of datagrams with the offload on and off."""

    def __init__(self, *, echoes: bool, with_offload: bool, without: bool) -> None:
        self.on, self.turned = True, []
        self._echoes, self._with, self._without = echoes, with_offload, without

    async def echo(self, host: object) -> bool:
        return self._echoes

    async def datagram(self, host: object) -> bool:
        return self._with if self.on else self._without

    def offload(self, on: bool) -> None:
        self.on = on
        self.turned.append(on)


@pytest.mark.parametrize(
    ("echoes", "with_offload", "without", "mended", "turned"),
    [
        (True, False, True, True, [False]),  # the defect
        (True, True, True, False, []),
        (True, False, False, False, [False, True]),  # a firewall
        (False, False, True, False, []),  # nobody there
    ],
)
async def test_only_the_proof_turns_it_off(echoes, with_offload, without, mended, turned):
    path = Path(echoes=echoes, with_offload=with_offload, without=without)
    found = await offload.mend([ONE, TWO], echo=path.echo, datagram=path.datagram, offload=path.offload)
    assert (found, path.turned, path.on) == (mended, turned, not mended)


async def test_one_peer_that_answers_is_enough():
    asked = []

    async def datagram(host: object) -> bool:
        asked.append(host)
        return host == TWO

    path = Path(echoes=True, with_offload=False, without=False)
    assert not await offload.mend([ONE, TWO], echo=path.echo, datagram=datagram, offload=path.offload)
    assert asked == [ONE, ONE, ONE, TWO] and path.turned == []


def test_only_peers_behind_a_tunnel_are_asked():
    net, net6 = ipaddress.ip_network("10.244.1.0/24"), ipaddress.ip_network("fd00::/64")
    host = ipaddress.ip_address("192.0.2.1")
    peers = [
        Peer("vxlan", host, (net,), "02:00:00:00:00:01"),
        Peer("plain", host, (net,)),
        Peer("six", host, (net6,), "02:00:00:00:00:02"),
    ]
    assert offload.tunnels(peers) == [ONE]
