"""Default privileges of a container: capabilities, and the kernel interfaces hidden or read-only in it.

The lists are what containerd and CRI-O give an unprivileged pod; the masks follow containerd's
pkg/oci/spec.go, including the power figures of GHSA-7ww5-4wqc-m92c.
"""

from __future__ import annotations

from collections.abc import Iterable

from host.errors import InputError

CAPABILITIES: tuple[str, ...] = (
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)
"""Names in the order of their numbers (linux/capability.h)."""

DEFAULT_CAPABILITIES = frozenset(
    {
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    }
)

MASKED_PATHS: tuple[str, ...] = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
"""Hidden behind an empty read-only folder or the null device."""

READONLY_PATHS: tuple[str, ...] = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)


def capability_name(name: str) -> str:
    """The bare upper-case name (cap_net_admin -> NET_ADMIN).

    Raises:
        InputError: no such capability.
    """
    bare = name.upper().removeprefix("CAP_")
    if bare not in CAPABILITIES:
        raise InputError(f"capability {name[:80]!r} is not known: use a name like NET_ADMIN, or ALL")
    return bare


def capabilities(*, add: Iterable[str] = (), drop: Iterable[str] = ()) -> tuple[str, ...]:
    """The capability set of an unprivileged container, as CRI asks for it.

    ALL in `drop` starts from none, ALL in `add` from every one, none where both have it; then names of `add`
    come and names of `drop` go, as in containerd.

    Returns:
        bare names in the order of their numbers.

    Raises:
        InputError: a name is not known.
    """
    adds, drops = list(add), list(drop)
    add_all = any(name.upper() == "ALL" for name in adds)
    drop_all = any(name.upper() == "ALL" for name in drops)
    added = {capability_name(name) for name in adds if name.upper() != "ALL"}
    dropped = {capability_name(name) for name in drops if name.upper() != "ALL"}
    chosen = set() if drop_all else set(CAPABILITIES) if add_all else set(DEFAULT_CAPABILITIES)
    chosen = (chosen | added) - dropped
    return tuple(name for name in CAPABILITIES if name in chosen)


def capability_mask(names: Iterable[str]) -> int:
    """The bit mask of those names.

    Raises:
        InputError: a name is not known.
    """
    return sum(1 << CAPABILITIES.index(name) for name in {capability_name(name) for name in names})
