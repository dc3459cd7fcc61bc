"""The device program: what an interpreter of its few instructions answers must be what v1's list means."""

from __future__ import annotations

import struct
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.cgroups import DeviceRule
from host.cgroups import devicefilter as filters
from host.cgroups.devices import ALL_DEVICES, CONTAINER_DEVICES

_BITS = {"m": 1, "r": 2, "w": 4}


def run(program: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    """Interpret a program for one request, as the kernel would; every instruction must be known."""
    request = sum(_BITS[letter] for letter in access) << 16 | {"b": 1, "c": 2}[kind]
    context = struct.pack("<III", request, major, minor)
    code = list(struct.iter_unpack("<BBhi", program))
    registers, at = [0] * 11, 0
    while True:
        opcode, pair, offset, value = code[at]
        target, source = pair & 15, pair >> 4
        at += 1
        if opcode == filters.LOAD_WORD:
            assert source == 1
            (registers[target],) = struct.unpack_from("<I", context, offset)
        elif opcode == filters.MOVE_IMMEDIATE:
            registers[target] = value
        elif opcode == filters.MOVE_REGISTER:
            registers[target] = registers[source]
        elif opcode == filters.AND_IMMEDIATE:
            registers[target] &= value
        elif opcode == filters.SHIFT_RIGHT:
            registers[target] >>= value
        elif opcode == filters.JUMP_IF_NOT_EQUAL:
            at += offset if registers[target] != value else 0
        elif opcode == filters.JUMP_IF_EQUAL:
            at += offset if registers[target] == value else 0
        elif opcode == filters.JUMP_IF_REGISTERS_DIFFER:
            at += offset if registers[target] != registers[source] else 0
        else:
            assert opcode == filters.EXIT
            return bool(registers[0])


def meant(rules: tuple[DeviceRule, ...], kind: str, major: int, minor: int, access: str) -> bool:
    """What the rules say: the last one that is about the request."""
    for rule in reversed(rules):
        same = (rule.kind, kind), (rule.major, major), (rule.minor, minor)
        if rule.kind != "a" and not all(asked in (None, found) for asked, found in same):
            continue
        named = set("rwm") if rule.kind == "a" else set(rule.access)
        if (set(access) <= named) if rule.allow else (set(access) & named):
            return rule.allow
    return False


RULES = st.builds(
    DeviceRule,
    kind=st.sampled_from("abc"),
    major=st.sampled_from([None, 1, 8]),
    minor=st.sampled_from([None, 0, 3]),
    access=st.sampled_from(["r", "w", "m", "rw", "rwm", "wm"]),
    allow=st.booleans(),
)


@settings(deadline=None)
@given(st.lists(RULES, max_size=5))
def test_a_program_answers_as_its_rules_say(rules: list[DeviceRule]) -> None:
    program = filters.assemble(rules)
    for kind, major, minor, access in product("bc", (1, 8, 9), (0, 3), ("r", "w", "rw", "m")):
        expected = meant(tuple(rules), kind, major, minor, access)
        assert run(program, kind, major, minor, access) is expected


@pytest.mark.parametrize(
    ("kind", "major", "minor", "access", "allowed"),
    [
        ("c", 1, 3, "rw", True),
        ("c", 1, 11, "r", False),
        ("c", 1, 11, "m", True),
        ("b", 8, 0, "r", False),
        ("b", 8, 0, "m", True),
        ("c", 136, 77, "rw", True),
        ("c", 10, 200, "rw", False),
    ],
)
def test_what_every_container_may_use(kind: str, major: int, minor: int, access: str, allowed: bool) -> None:
    assert run(filters.assemble(CONTAINER_DEVICES), kind, major, minor, access) is allowed


def test_what_can_never_be_reached_is_left_out() -> None:
    everything = filters.assemble((*CONTAINER_DEVICES, *ALL_DEVICES))
    assert everything == filters.assemble(ALL_DEVICES)
    assert run(everything, "b", 8, 0, "rw")


def test_no_rules_allow_nothing() -> None:
    assert not run(filters.assemble(()), "c", 1, 3, "r")
