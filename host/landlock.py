"""Landlock: a process gives up the file system except for some folders, for good and without any privilege.

Source: Documentation/userspace-api/landlock.rst, include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from host import syscalls
from host.errors import HostError

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
READ = READ_FILE | READ_DIR

_GET_VERSION = 1
_PATH_BENEATH = 1
_KNOWN = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""ABI version -> the rights it knows; later versions add none for files."""


def restrict(rules: Mapping[int, int]) -> bool:
    """Leave the calling thread, and what it starts, only these rights.

    False, and nothing done, where the kernel has no Landlock.

    Args:
        rules: descriptor of a folder -> rights below it. Files that are open already stay usable.

    Raises:
        HostError: the kernel refuses. PR_SET_NO_NEW_PRIVS, which it insists on, is set here.
    """
    try:
        version = syscalls.call("landlock_create_ruleset", None, 0, _GET_VERSION)
    except HostError:
        return False  # not built in (ENOSYS) or switched off at boot (EOPNOTSUPP)
    known = _KNOWN[min(version, max(_KNOWN))]
    ruleset = syscalls.call("landlock_create_ruleset", struct.pack("=Q", known), 8, 0)
    for folder, rights in rules.items():
        syscalls.call(
            "landlock_add_rule", ruleset, _PATH_BENEATH, struct.pack("=Qi", rights & known, folder), 0
        )
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.call("landlock_restrict_self", ruleset, 0)
    return True
