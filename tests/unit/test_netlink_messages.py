"""rtnetlink messages: lengths, names, MACs, and reading what the kernel may send."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host import nlmsg, rtnl
from host.errors import InputError
from host.rtnl import Route


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=300)), max_size=8))
def test_attributes_round_trip(pairs):
    data = b"".join(nlmsg.attr(kind, value) for kind, value in pairs)
    assert len(data) % 4 == 0
    assert list(nlmsg.attrs(data)) == pairs


def test_length_must_fit_sixteen_bits():
    assert len(nlmsg.attr(1, b"x" * 0xFFFB)) == 0x10000
    with pytest.raises(InputError):
        nlmsg.attr(1, b"x" * 0xFFFC)
    with pytest.raises(InputError):
        nlmsg.nest(1, *[nlmsg.attr(1, b"x" * 1000)] * 70)


@given(st.binary(max_size=64))
def test_reading_any_attributes_ends(data):
    list(nlmsg.attrs(data))


@pytest.mark.parametrize(
    "mac", ["", "aa", "aa:bb:cc:dd:ee", "aa:bb:cc:dd:ee:gg", "aa-bb-cc-dd-ee-ff", "a:" * 8]
)
def test_bad_macs(mac):
    with pytest.raises(InputError):
        rtnl.mac_bytes(mac)


@given(st.binary(min_size=6, max_size=6))
def test_macs_round_trip(raw):
    assert rtnl.mac_bytes(rtnl.mac_text(raw)) == raw


@given(st.text(max_size=20))
def test_device_names_are_short_and_plain(name):
    try:
        raw = rtnl.name_bytes(name)
    except InputError:
        return
    assert raw == name.encode() + b"\0" and len(raw) <= 16 and not set(name) & set("/: \n")


@pytest.mark.parametrize(
    "route",
    [
        Route(ipaddress.ip_network("0.0.0.0/0"), 3, ipaddress.ip_address("10.0.0.1"), 4),
        Route(ipaddress.ip_network("10.1.0.0/24"), 7, ipaddress.ip_address("10.1.0.0"), 110, True),
        Route(ipaddress.ip_network("fd00::/64"), 7, None, 110),
    ],
)
def test_routes_round_trip(route):
    assert rtnl.parse_route(rtnl.route(route).body) == route


def test_links_are_read():
    body = struct.pack("=BxHiII", 0, 1, 5, 1, 0)
    body += nlmsg.attr(rtnl.IFLA_IFNAME, b"cbr0\0") + nlmsg.attr(rtnl.IFLA_MTU, struct.pack("=I", 1450))
    body += nlmsg.attr(rtnl.IFLA_ADDRESS, bytes(range(6)))
    body += nlmsg.nest(rtnl.IFLA_LINKINFO, nlmsg.attr(rtnl.IFLA_INFO_KIND, b"bridge\0"))
    link = rtnl.parse_link(body)
    assert (link.index, link.name, link.kind, link.mtu, link.up) == (5, "cbr0", "bridge", 1450, True)
    assert (link.mac, link.master, link.hairpin) == ("00:01:02:03:04:05", 0, None)
