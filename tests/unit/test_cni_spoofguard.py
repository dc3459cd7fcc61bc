"""The spoof guard, run frame by frame in an interpreter of classic BPF."""

import ipaddress
import struct

import pytest

from cni.spoofguard import program
from host.traffic import TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC

MAC, OTHER_MAC = bytes.fromhex("0a580af40102"), bytes.fromhex("0a580af40103")
FOUR, OTHER_FOUR = ipaddress.ip_address("10.244.1.2"), ipaddress.ip_address("10.244.1.3")
SIX, OTHER_SIX = ipaddress.ip_address("fd00:1::2"), ipaddress.ip_address("fd00:1::3")
LINK_LOCAL, NOBODY = ipaddress.ip_address("fe80::858:aff:fef4:102"), ipaddress.ip_address("::")
ROUTER = ipaddress.ip_address("fd00:1::1")
DUAL = program(MAC.hex(":"), [FOUR, SIX])


def verdict(code, frame):
    """What the kernel's interpreter would answer (net/core/filter.c)."""
    place, value = 0, 0
    while True:
        step = code[place]
        place += 1
        loads = {0x20: "!I", 0x28: "!H", 0x30: "!B"}
        if step.code in loads:
            form = struct.Struct(loads[step.code])
            if step.k + form.size > len(frame):
                return TC_ACT_OK
            value = form.unpack_from(frame, step.k)[0]
        elif step.code == 0x80:
            value = len(frame)
        elif step.code == 0x54:
            value &= step.k
        elif step.code in (0x15, 0x35):
            matches = value == step.k if step.code == 0x15 else value >= step.k
            place += step.jump_true if matches else step.jump_false
        elif step.code == 0x06:
            return step.k
        else:
            raise AssertionError(f"no such instruction: {step}")


def ether(kind, payload, source=MAC):
    return b"\xff" * 6 + source + struct.pack("!H", kind) + payload


def ipv4(source, mac=MAC):
    return ether(0x0800, b"\x45" + bytes(11) + source.packed + bytes(4), mac)


def arp(sender, *, mac=MAC, inner=MAC):
    packed = ipaddress.ip_address(sender).packed
    return ether(
        0x0806, struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + inner + packed + bytes(6) + OTHER_FOUR.packed, mac
    )


def ipv6(source, header=17, payload=bytes(16), mac=MAC):
    fixed = struct.pack("!IHBB", 6 << 28, len(payload), header, 255)
    return ether(0x86DD, fixed + source.packed + OTHER_SIX.packed + payload, mac)


def icmp6(kind, target=None):
    return bytes([kind, 0]) + bytes(6) + (target.packed if target else bytes(16)) + bytes(8)


def behind(header, payload, *, blocks=0):
    """A payload after one extension header; `header` is what that says comes next."""
    return bytes([header, blocks]) + bytes(6 + 8 * blocks) + payload


@pytest.mark.parametrize(
    "frame",
    [
        ipv4(FOUR),
        arp(FOUR),
        arp("0.0.0.0"),
        ipv6(SIX),
        ipv6(LINK_LOCAL),
        ipv6(NOBODY, 58, icmp6(135, SIX)),
        ipv6(SIX, 58, icmp6(128)),
        ipv6(SIX, 58, icmp6(133)),
        ipv6(SIX, 58, icmp6(135, OTHER_SIX)),
        ipv6(SIX, 58, icmp6(136, SIX)),
        ipv6(LINK_LOCAL, 58, icmp6(136, LINK_LOCAL)),
        ipv6(LINK_LOCAL, 0, behind(58, icmp6(143))),
        ipv6(SIX, 44, behind(17, bytes(16))),
        ipv6(SIX, 60, behind(17, bytes(16))),
    ],
)
def test_a_pods_own_traffic_passes(frame):
    assert verdict(DUAL, frame) == TC_ACT_UNSPEC


@pytest.mark.parametrize(
    "frame",
    [
        ipv4(OTHER_FOUR),
        ipv4(ipaddress.ip_address("0.0.0.0")),
        ipv4(FOUR, OTHER_MAC),
        arp(OTHER_FOUR),
        arp("10.244.1.1"),
        arp(FOUR, inner=OTHER_MAC),
        arp(FOUR, mac=OTHER_MAC),
        arp(FOUR)[:-12],
        ipv6(OTHER_SIX),
        ipv6(ROUTER),
        ipv6(ipaddress.ip_address("::1")),
        ipv6(ipaddress.ip_address("fd00:1::2:0:2")),
        ipv6(SIX, mac=OTHER_MAC),
        ipv6(SIX)[:50],
        ipv6(LINK_LOCAL, 58, icmp6(134)),
        ipv6(LINK_LOCAL, 58, icmp6(137)),
        ipv6(LINK_LOCAL, 58, icmp6(136, ROUTER)),
        ipv6(SIX, 58, icmp6(136, NOBODY)),
        ipv6(SIX, 58, icmp6(136, SIX)[:20]),
        ipv6(SIX, 0, behind(58, icmp6(136, SIX))),
        ipv6(SIX, 0, behind(58, icmp6(134))),
        ipv6(SIX, 0, behind(17, bytes(20))),
        ipv6(SIX, 0, behind(58, bytes([143]) + bytes(30), blocks=1)),
        ipv6(SIX, 60, behind(58, icmp6(134))),
        ipv6(SIX, 43, behind(58, icmp6(136, ROUTER))),
        ipv6(SIX, 60, behind(60, behind(58, icmp6(134)))),
        ipv6(SIX, 51, behind(58, icmp6(134))),
        ether(0x88A8, bytes(60)),  # VLAN in VLAN
        ether(0x0027, bytes(60)),  # a length: spanning tree
        ether(0x88CC, bytes(60)),
        b"",
        b"\xff" * 14,
    ],
)
def test_everything_else_is_dropped(frame):
    assert verdict(DUAL, frame) == TC_ACT_SHOT


def test_a_pod_of_one_family_sends_no_other():
    four, six = program(MAC.hex(":"), [FOUR]), program(MAC.hex(":"), [SIX])
    assert verdict(four, ipv6(SIX)) == verdict(six, ipv4(FOUR)) == verdict(six, arp(FOUR)) == TC_ACT_SHOT
    assert verdict(four, ipv4(FOUR)) == verdict(four, ipv6(LINK_LOCAL)) == TC_ACT_UNSPEC
    assert verdict(six, ipv6(SIX)) == TC_ACT_UNSPEC


def test_jumps_fit_the_instruction():
    for code in (DUAL, program(MAC.hex(":"), [FOUR]), program(MAC.hex(":"), [SIX])):
        for place, step in enumerate(code):
            for jump in (step.jump_true, step.jump_false):
                assert 0 <= jump <= 255
                assert place + 1 + jump <= len(code)
