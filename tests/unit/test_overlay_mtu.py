"""Which peers have a narrow path, with an echo that a table answers."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.overlay import mtu

HOST = ipaddress.ip_address("192.0.2.2")


@pytest.mark.parametrize(
    ("path_mtu", "narrow"),
    [(1500, False), (9000, False), (1450, True), (0, False)],
)
async def test_only_a_path_between_small_and_full_is_narrow(path_mtu, narrow):
    async def echo(host, size):
        return size <= path_mtu

    found = await mtu.find_narrow({"node2": HOST}, 1500, echo)
    assert list(found) == (["node2"] if narrow else [])


async def test_one_lost_packet_is_no_finding():
    lost = [1500]

    async def echo(host, size):
        if size in lost:
            lost.remove(size)
            return False
        return True

    assert await mtu.find_narrow({"node2": HOST}, 1500, echo) == {}


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 1472))
def test_replies_are_recognised(identity, number, size):
    sent = mtu.request(identity, number, size)
    assert mtu._checksum(sent) == 0 and len(sent) == size + 8
    header = b"\x45" + bytes(19)
    assert mtu.reply(header + b"\0" + sent[1:]) == (identity, number)
    assert mtu.reply(header + sent) is None, "a request is no reply"


@given(st.binary(max_size=60))
def test_any_packet_is_read(packet):
    mtu.reply(packet)
