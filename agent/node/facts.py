"""What this machine is and has, read from /proc, /sys and /etc.

Every root is an argument. Values that a kernel does not offer are empty or zero, never an error: a node
without a machine-id still is a node.

Source: proc(5), sysfs hugepages (Documentation/admin-guide/mm/hugetlbpage.rst), os-release(5), machine-id(5).
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from pathlib import Path

_ARCHITECTURE = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """What does not change while we run. Sizes in bytes."""

    machine_id: str
    system_uuid: str
    boot_id: str
    kernel_version: str
    os_image: str
    architecture: str
    cpus: int
    memory: int
    hugepages: dict[str, int]
    """Resource name ("hugepages-2Mi") to bytes set aside."""


@dataclasses.dataclass(frozen=True)
class Usage:
    """What there is to use right now. Bytes, inodes, process ids."""

    memory_available: int
    nodefs_capacity: int
    nodefs_available: int
    nodefs_inodes: int
    nodefs_inodes_free: int
    pids_capacity: int
    pids_used: int


def read_machine(
    *, proc: Path = Path("/proc"), sys: Path = Path("/sys"), etc: Path = Path("/etc")
) -> Machine:
    """Read the lasting facts."""
    memory = _meminfo(proc)
    system = os.uname()
    machine_id = _line(etc / "machine-id")
    return Machine(
        machine_id=machine_id,
        system_uuid=_line(sys / "class/dmi/id/product_uuid") or machine_id,
        boot_id=_line(proc / "sys/kernel/random/boot_id"),
        kernel_version=system.release,
        os_image=_os_image(etc),
        architecture=_ARCHITECTURE.get(platform.machine(), platform.machine()),
        cpus=len(os.sched_getaffinity(0)),
        memory=memory.get("MemTotal", 0),
        hugepages=_hugepages(sys),
    )


def read_usage(*, root: Path, proc: Path = Path("/proc")) -> Usage:
    """Read what changes; `root` is a folder on the file system that pods' data is on.

    Raises:
        OSError: `root` does not exist.
    """
    memory = _meminfo(proc)
    disk = os.statvfs(root)
    return Usage(
        memory_available=memory.get("MemAvailable", 0),
        nodefs_capacity=disk.f_blocks * disk.f_frsize,
        nodefs_available=disk.f_bavail * disk.f_frsize,
        nodefs_inodes=disk.f_files,
        nodefs_inodes_free=disk.f_favail,
        pids_capacity=min(_number(proc / "sys/kernel/pid_max"), _number(proc / "sys/kernel/threads-max")),
        pids_used=_threads(proc),
    )


def _meminfo(proc: Path) -> dict[str, int]:
    found = re.findall(r"^(\w+):\s+(\d+) kB$", _text(proc / "meminfo"), re.MULTILINE)
    return {name: int(kibibytes) * 1024 for name, kibibytes in found}


def _threads(proc: Path) -> int:
    """All threads of the machine: the number after the slash in the fourth field of /proc/loadavg."""
    fields = _text(proc / "loadavg").split()
    return int(fields[3].partition("/")[2]) if len(fields) > 3 else 0


def _hugepages(sys: Path) -> dict[str, int]:
    result = {}
    for folder in sorted((sys / "kernel/mm/hugepages").glob("hugepages-*kB")):
        size = int(folder.name.removeprefix("hugepages-").removesuffix("kB")) * 1024
        result[f"hugepages-{_binary(size)}"] = size * _number(folder / "nr_hugepages")
    return result


def _binary(size: int) -> str:
    for suffix, unit in (("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)


def _os_image(etc: Path) -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)"?$', _text(etc / "os-release"), re.MULTILINE)
    return match[1] if match else "Linux"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _line(path: Path) -> str:
    return _text(path).strip()


def _number(path: Path) -> int:
    text = _line(path)
    return int(text) if text.isdigit() else 0
