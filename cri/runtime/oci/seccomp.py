"""Seccomp profiles as an OCI runtime takes them: JSON in place of a program for the kernel.

The two functions of `cri.runtime.seccomp`, from the same rules.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from typing import Any

import pyseccomp

from cri.runtime import seccomp
from cri.runtime.security import capability_name

_ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}
_OPERATORS = {number: name for name, number in seccomp.OPERATORS.items()}


def compile_default(*, capabilities: Iterable[str]) -> bytes:
    """The default profile for a container with these capabilities.

    Raises:
        InputError: a capability is not known.
    """
    held = frozenset(capability_name(name) for name in capabilities)
    names: dict[tuple[int, tuple[seccomp.Condition, ...]], list[str]] = {}
    for action, name, conditions in seccomp.default_rules(held):
        names.setdefault((action, conditions), []).append(name)
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "architectures": _ARCHITECTURES.get(os.uname().machine, []),
        "syscalls": [_entry(found, *key) for key, found in names.items()],
    }
    return json.dumps(profile).encode()


def _entry(names: list[str], action: int, conditions: tuple[seccomp.Condition, ...]) -> dict[str, Any]:
    keys = ("index", "op", "value", "valueTwo")
    return {
        "names": names,
        **_action(action),
        "args": [
            dict(zip(keys, (at, _OPERATORS[op], *values), strict=True)) for at, op, *values in conditions
        ],
    }


def _action(action: int) -> dict[str, Any]:
    if action == pyseccomp.ALLOW:
        return {"action": "SCMP_ACT_ALLOW"}
    return {"action": "SCMP_ACT_ERRNO", "errnoRet": action & 0xFFFF}


def compile_profile(profile: bytes, *, capabilities: Iterable[str] = ()) -> bytes:
    """A Localhost profile, refused where our own runtime would refuse it, and otherwise as it is.

    Raises:
        InputError: as `cri.runtime.seccomp.compile_profile`.
    """
    seccomp.compile_profile(profile, capabilities=capabilities)
    return profile
