"""Seccomp profiles compiled to classic BPF by libseccomp; runs in nodelet-cri, never in a supervisor.

Two sources: our default table (`seccomp_table`) for RuntimeDefault, and an OCI runtime-spec profile
(config-linux.md#seccomp) as JSON for Localhost. A filter covers every ABI the kernel of this machine runs
(x86-64 with i386 and x32; arm64 with 32-bit Arm), a call of any other kills.

Whatever cannot be understood is refused (CVE-2023-2431), with one exception that the OCI specification makes:
a call name that libseccomp does not know is left out.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import struct
from collections.abc import Iterable
from typing import Any

import pyseccomp

from cri.runtime import seccomp_table as table
from cri.runtime.security import capability_name
from host.errors import HostError, InputError, from_oserror

MAX_PROFILE = 1 << 20
MAX_INSTRUCTIONS = 4096
_ARCHES = {
    pyseccomp.Arch.X86_64: (pyseccomp.Arch.X86, pyseccomp.Arch.X32),
    pyseccomp.Arch.AARCH64: (pyseccomp.Arch.ARM,),
}
_ACTIONS = {
    "SCMP_ACT_ALLOW": pyseccomp.ALLOW,
    "SCMP_ACT_KILL": pyseccomp.KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": pyseccomp.KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": pyseccomp.KILL_PROCESS,
    "SCMP_ACT_TRAP": pyseccomp.TRAP,
    "SCMP_ACT_LOG": pyseccomp.LOG,
}
OPERATORS = {
    "SCMP_CMP_NE": pyseccomp.NE,
    "SCMP_CMP_LT": pyseccomp.LT,
    "SCMP_CMP_LE": pyseccomp.LE,
    "SCMP_CMP_EQ": pyseccomp.EQ,
    "SCMP_CMP_GE": pyseccomp.GE,
    "SCMP_CMP_GT": pyseccomp.GT,
    "SCMP_CMP_MASKED_EQ": pyseccomp.MASKED_EQ,
}
_NEWEST_SHARED = 424
"""From this number on, a system call has the same number on every architecture (and is never reused)."""
_PRIVATE = 0xF0000
"""Private numbers of 32-bit Arm, and above them those of x32 (0x40000000 and up)."""
_INSTRUCTION = struct.Struct("HBBI")
_LOAD, _JUMP_GE, _JUMP_GT, _RETURN = 0x20, 0x35, 0x25, 0x06
_BINARY_TREE = 2

Condition = tuple[int, int, int, int]
"""(argument, operator, value, second value)"""
Rule = tuple[int, str, tuple[Condition, ...]]
"""(action, system call, conditions that must all hold)"""


def compile_default(*, capabilities: Iterable[str]) -> bytes:
    """The default profile for a container with these capabilities.

    Returns:
        a BPF program, 8 bytes an instruction, for `ContainerSpec.seccomp`.

    Raises:
        InputError: a capability is not known.
    """
    return _compile_default(frozenset(capability_name(name) for name in capabilities))


@functools.lru_cache(maxsize=64)
def _compile_default(held: frozenset[str]) -> bytes:
    return _compile(pyseccomp.ERRNO(errno.EPERM), default_rules(held))


def default_rules(held: frozenset[str]) -> list[Rule]:
    """The table's rules for a set of capabilities (bare names)."""
    names = dict.fromkeys(table.ALWAYS)
    for capability in sorted(held & table.WITH_CAPABILITY.keys()):
        names.update(dict.fromkeys(table.WITH_CAPABILITY[capability]))
    rules: list[Rule] = [(pyseccomp.ALLOW, name, ()) for name in names]
    for value in table.PERSONALITIES:
        rules.append((pyseccomp.ALLOW, "personality", ((0, pyseccomp.EQ, value, 0),)))
    for mask, family in table.SOCKET_FAMILIES:
        rules.append((pyseccomp.ALLOW, "socket", ((0, pyseccomp.MASKED_EQ, mask, family),)))
    if "SYS_ADMIN" not in held:
        plain = (0, pyseccomp.MASKED_EQ, table.CLONE_NAMESPACES, 0)
        rules.append((pyseccomp.ALLOW, "clone", (plain,)))
    absent = [name for name in table.NOT_THERE if name not in names]
    rules += [(pyseccomp.ERRNO(errno.ENOSYS), name, ()) for name in absent]
    return rules


def compile_profile(profile: bytes, *, capabilities: Iterable[str] = ()) -> bytes:
    """A profile in the OCI runtime specification's JSON.

    Args:
        profile: JSON text.
        capabilities: the container's; such profiles have no conditions on them, so they are only checked.

    Raises:
        InputError: not JSON, or with an action, operator, key or number that is not known.
    """
    for name in capabilities:
        capability_name(name)
    if len(profile) > MAX_PROFILE:
        raise InputError(f"seccomp profile is larger than {MAX_PROFILE} bytes")
    return _compile_profile(profile)


@functools.lru_cache(maxsize=32)
def _compile_profile(profile: bytes) -> bytes:
    try:
        found = json.loads(profile)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"seccomp profile is not JSON: {exc}") from exc
    known = {"defaultAction", "defaultErrnoRet", "architectures", "flags", "syscalls", "archMap"}
    if not isinstance(found, dict) or not found.get("defaultAction"):
        raise InputError("seccomp profile has no defaultAction")
    _only(found, known, "profile")
    default = _action(found["defaultAction"], found.get("defaultErrnoRet"))
    rules: list[Rule] = []
    for entry in _list(found.get("syscalls"), "syscalls"):
        rules += _entry_rules(entry)
    return _compile(default, [rule for rule in rules if rule[0] != default])


def _entry_rules(entry: Any) -> list[Rule]:
    if not isinstance(entry, dict):
        raise InputError("seccomp profile: syscalls must hold objects")
    conditional = [key for key in ("includes", "excludes") if entry.get(key)]
    if conditional:
        raise InputError(f"seccomp profile: {conditional[0]} is Docker's form: write the OCI form without it")
    known = {"names", "action", "errnoRet", "args", "comment", "includes", "excludes"}
    _only(entry, known, "syscalls entry")
    action = _action(entry.get("action"), entry.get("errnoRet"))
    arguments = [_argument(item) for item in _list(entry.get("args"), "args")]
    names = _list(entry.get("names"), "names")
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError("seccomp profile: names must be a list of system call names")
    indexes = [item[0] for item in arguments]
    alternatives: list[tuple[Condition, ...]] = [tuple(arguments)]
    if len(set(indexes)) < len(indexes):
        alternatives = [(item,) for item in arguments]
    return [(action, name, conditions) for name in names for conditions in alternatives]


def _argument(item: Any) -> Condition:
    """(index, operator, value, second value); two conditions on one argument are alternatives, as in runc."""
    if not isinstance(item, dict) or item.get("op") not in OPERATORS:
        raise InputError("seccomp profile: an argument needs a known op, such as SCMP_CMP_EQ")
    index, first, second = item.get("index"), item.get("value"), item.get("valueTwo", 0)
    numbers = [number for number in (index, first, second) if type(number) is int and 0 <= number < 1 << 64]
    if len(numbers) < 3 or numbers[0] > 5:
        raise InputError("seccomp profile: an argument needs index 0..5 and unsigned 64-bit values")
    return numbers[0], OPERATORS[item["op"]], numbers[1], numbers[2]


def _action(name: Any, number: Any) -> int:
    if name == "SCMP_ACT_ERRNO":
        value = errno.EPERM if number is None else number
        if type(value) is not int or not 0 <= value < 4096:
            raise InputError(f"seccomp profile: errnoRet {value!r} is no errno")
        return pyseccomp.ERRNO(value)
    if not isinstance(name, str) or name not in _ACTIONS:
        raise InputError(f"seccomp profile: action {name!r} is not supported")
    return _ACTIONS[name]


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise InputError(f"seccomp profile: {what} must be a list")
    return value


def _only(found: dict[str, Any], known: set[str], what: str) -> None:
    unknown = sorted(found.keys() - known)
    if unknown:
        raise InputError(f"seccomp profile: {what} has the unknown key {unknown[0]!r}")


def _compile(default: int, rules: list[Rule]) -> bytes:
    """Rules of other actions than the default, as one program for every ABI of this machine."""
    native = pyseccomp.system_arch()
    try:
        made = pyseccomp.SyscallFilter(default)
        for arch in _ARCHES.get(native, ()):
            made.add_arch(arch)
        made.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, _BINARY_TREE)
        newest = 0
        for action, name, conditions in rules:
            number = pyseccomp.resolve_syscall(native, name)
            newest = max(newest, number)
            if number != -1 and action != default:
                made.add_rule(action, name, *(pyseccomp.Arg(*condition) for condition in conditions))
        program = _export(made)
    except (OSError, ValueError) as exc:
        error = exc if isinstance(exc, OSError) else OSError(errno.EINVAL, str(exc))
        raise from_oserror(error, "compile seccomp profile") from exc
    if default == pyseccomp.ERRNO(errno.EPERM) and newest >= _NEWEST_SHARED:
        program = unknown_is_enosys(newest) + program
    if len(program) // _INSTRUCTION.size > MAX_INSTRUCTIONS:
        raise InputError("seccomp profile is longer than the kernel allows")
    return program


def unknown_is_enosys(newest: int) -> bytes:
    """A prologue: calls newer than every rule are unknown to the profile's author, not forbidden by him.

    Without it a new C library on an old profile takes EPERM for an answer and does not fall back.
    """
    refuse = pyseccomp.ERRNO(errno.ENOSYS)
    instructions = (
        (_LOAD, 0, 0, 0),
        (_JUMP_GE, 2, 0, _PRIVATE),
        (_JUMP_GT, 0, 1, newest),
        (_RETURN, 0, 0, refuse),
    )
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in instructions)


def _export(made: pyseccomp.SyscallFilter) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    with os.fdopen(fd, "r+b") as file:
        made.export_bpf(file)
        file.seek(0)
        program = file.read()
    if not program:
        raise HostError(errno.EIO, "compile seccomp profile", "libseccomp wrote nothing")
    return program
