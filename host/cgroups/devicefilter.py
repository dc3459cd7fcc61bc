"""Device control of cgroup v2: rules as an eBPF program (Documentation/admin-guide/cgroup-v2.rst, "Device
controller"; instruction set in Documentation/bpf/standardization/instruction-set.rst).

The kernel calls the program with a struct bpf_cgroup_dev_ctx whenever a process of the cgroup opens or makes
a device; 1 allows, 0 refuses. Rules are a chain of tests, the last rule first, so that later rules win as in
v1. Assembling is pure; `attach` is what touches the kernel.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from host import syscalls
from host.cgroups.model import DeviceRule
from host.errors import from_oserror

_CONTEXT_TYPE, _CONTEXT_MAJOR, _CONTEXT_MINOR = 0, 4, 8
_TYPES = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}
_EVERY_ACCESS = 7

# Opcodes: class, operation and source in one byte.
LOAD_WORD = 0x61
MOVE_IMMEDIATE, MOVE_REGISTER = 0xB7, 0xBC
AND_IMMEDIATE, SHIFT_RIGHT = 0x54, 0x74
JUMP_IF_EQUAL, JUMP_IF_NOT_EQUAL, JUMP_IF_REGISTERS_DIFFER = 0x15, 0x55, 0x5D
EXIT = 0x95

# Registers: 0 answers, 1 is the context on entry.
_ANSWER, _CONTEXT, _TYPE, _REQUEST, _MAJOR, _MINOR, _SCRATCH = range(7)


def instruction(opcode: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One instruction: 8 bytes, struct bpf_insn of linux/bpf.h."""
    return struct.pack("<BBhi", opcode, source << 4 | target, offset, value)


def assemble(rules: Iterable[DeviceRule]) -> bytes:
    """The program for rules that begin with everything denied.

    Args:
        rules: in v1's order; where two overlap the later one wins.
    """
    program = [
        instruction(LOAD_WORD, _TYPE, _CONTEXT, _CONTEXT_TYPE),
        instruction(MOVE_REGISTER, _REQUEST, _TYPE),
        instruction(SHIFT_RIGHT, _REQUEST, value=16),
        instruction(AND_IMMEDIATE, _TYPE, value=0xFFFF),
        instruction(LOAD_WORD, _MAJOR, _CONTEXT, _CONTEXT_MAJOR),
        instruction(LOAD_WORD, _MINOR, _CONTEXT, _CONTEXT_MINOR),
    ]
    for rule in reversed(list(rules)):
        tests = _tests(rule)
        program += _with_offsets(tests) + _answer(allow=rule.allow)
        if not tests:  # it is about everything: the verifier refuses what can never be reached
            return b"".join(program)
    return b"".join(program + _answer(allow=False))


def _answer(*, allow: bool) -> list[bytes]:
    return [instruction(MOVE_IMMEDIATE, _ANSWER, value=int(allow)), instruction(EXIT)]


def _tests(rule: DeviceRule) -> list[tuple[int, int, int, int]]:
    """(opcode, target, source, value) of what decides whether a rule is about a request; its jumps lead away.

    An allowing rule is about requests all of whose access it names, a denying one about those with any of it.
    """
    if rule.kind == "a":
        return []
    wanted = ((_TYPE, _TYPES[rule.kind]), (_MAJOR, rule.major), (_MINOR, rule.minor))
    tests = [(JUMP_IF_NOT_EQUAL, register, 0, value) for register, value in wanted if value is not None]
    access = sum(bit for letter, bit in _ACCESS.items() if letter in rule.access)
    if access != _EVERY_ACCESS:
        tests.append((MOVE_REGISTER, _SCRATCH, _REQUEST, 0))
        tests.append((AND_IMMEDIATE, _SCRATCH, 0, access))
        differ = (JUMP_IF_REGISTERS_DIFFER, _SCRATCH, _REQUEST, 0)
        tests.append(differ if rule.allow else (JUMP_IF_EQUAL, _SCRATCH, 0, 0))
    return tests


def _with_offsets(tests: list[tuple[int, int, int, int]]) -> list[bytes]:
    """Every jump goes behind the rule's answer, two instructions long."""
    jumps = (JUMP_IF_EQUAL, JUMP_IF_NOT_EQUAL, JUMP_IF_REGISTERS_DIFFER)
    return [
        instruction(opcode, target, source, len(tests) - index + 1 if opcode in jumps else 0, value)
        for index, (opcode, target, source, value) in enumerate(tests)
    ]


def attach(folder: Path, rules: Iterable[DeviceRule]) -> None:
    """Let a cgroup2 folder use these devices and no others, beside what the folders above it allow.

    Raises:
        HostError: the kernel has no device programs (CONFIG_CGROUP_BPF), or refused this one.
    """
    try:
        cgroup = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.control_devices(cgroup, assemble(rules))
        finally:
            os.close(cgroup)
    except OSError as exc:
        raise from_oserror(exc, f"control devices of {folder}") from exc
