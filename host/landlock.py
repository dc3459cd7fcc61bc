"""Landlock: a process gives up the file system except for some folders, for good and without any privilege.

Source: Documentation/userspace-api/landlock.rst, include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping

from host import syscalls
from host.errors import HostError, from_errno

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
READ = READ_FILE | READ_DIR

_NR_CREATE_RULESET, _NR_ADD_RULE, _NR_RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_GET_VERSION = 1
_PATH_BENEATH = 1
_KNOWN = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""ABI version -> the rights it knows; later versions add none for files."""

_libc = ctypes.CDLL(None, use_errno=True)


def restrict(rules: Mapping[int, int]) -> bool:
    """Leave the calling thread, and what it starts, only these rights.

    False, and nothing done, where the kernel has no Landlock.

    Args:
        rules: descriptor of a folder -> rights below it. Files that are open already stay usable.

    Raises:
        HostError: the kernel refuses. PR_SET_NO_NEW_PRIVS, which it insists on, is set here.
    """
    try:
        version = _call(_NR_CREATE_RULESET, None, 0, _GET_VERSION)
    except HostError:
        return False  # not built in (ENOSYS) or switched off at boot (EOPNOTSUPP)
    known = _KNOWN[min(version, max(_KNOWN))]
    ruleset = _call(_NR_CREATE_RULESET, struct.pack("=Q", known), 8, 0)
    for folder, rights in rules.items():
        _call(_NR_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights & known, folder), 0)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    _call(_NR_RESTRICT_SELF, ruleset, 0)
    return True


def _call(number: int, *args: object) -> int:
    result: int = _libc.syscall(number, *args)
    if result < 0:
        raise from_errno(ctypes.get_errno(), f"landlock call {number}")
    return result
