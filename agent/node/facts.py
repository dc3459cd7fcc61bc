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
    pids: int = 0
    """Process ids there can be."""
    swap: int = 0


def read_machine(
    *,
    memory_limit: int = 0,
    proc: Path = Path("/proc"),
    sys: Path = Path("/sys"),
    etc: Path = Path("/etc"),
) -> Machine:
    """Read the lasting facts.

    Args:
        memory_limit: bytes the node may use at most, where it is confined to a cgroup; 0: no such limit.
    """
    memory = meminfo(proc)
    total = memory.get("MemTotal", 0)
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
        memory=min(total, memory_limit) if memory_limit else total,
        hugepages=_hugepages(sys),
        pids=process_ids(proc)[0],
        swap=memory.get("SwapTotal", 0),
    )


def nodefs_capacity(root: Path) -> int:
    """Bytes of the file system that pods' data is on. Raises OSError: `root` does not exist."""
    disk = os.statvfs(root)
    return disk.f_blocks * disk.f_frsize


def meminfo(proc: Path) -> dict[str, int]:
    """The fields of /proc/meminfo that are sizes, in bytes."""
    found = re.findall(r"^([\w()]+):\s+(\d+) kB$", _text(proc / "meminfo"), re.MULTILINE)
    return {name: int(kibibytes) * 1024 for name, kibibytes in found}


def process_ids(proc: Path) -> tuple[int, int]:
    """How many process ids there can be, and how many are taken.

    Taken are all threads of the machine: the number after the slash in the fourth field of /proc/loadavg.
    """
    fields = _text(proc / "loadavg").split()
    taken = int(fields[3].partition("/")[2]) if len(fields) > 3 else 0
    return min(_number(proc / "sys/kernel/pid_max"), _number(proc / "sys/kernel/threads-max")), taken


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
