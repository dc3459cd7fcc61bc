"""Reads and writes of block devices (admin-guide/cgroup-v2.rst "IO", cgroup-v1/blkio-controller.rst).

Only counted here. CRI has no field for weights and limits: with v2 they come as `unified` (io.weight,
io.max).
"""

from __future__ import annotations

from host.cgroups.files import Read, Write
from host.cgroups.model import DeviceIo, Resources

HIERARCHIES = ("blkio",)
_BYTES, _OPERATIONS = "blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"


def plan_v1(resources: Resources, read: Read) -> list[Write]:
    """Nothing to limit."""
    return []


plan_v2 = plan_v1


def stats_v1(read: Read) -> dict[str, tuple[DeviceIo, ...]]:
    """Lines of device, direction and number; the throttling layer sees what every scheduler does."""
    found: dict[str, dict[str, int]] = {}
    for file, kind in ((_BYTES, "bytes"), (_OPERATIONS, "ios")):
        for line in read(file).splitlines():
            words = line.split()
            if len(words) == 3 and words[1] in ("Read", "Write") and words[2].isdecimal():
                found.setdefault(words[0], {})[words[1][0].lower() + kind] = int(words[2])
    return _stats(found)


def stats_v2(read: Read) -> dict[str, tuple[DeviceIo, ...]]:
    """io.stat: a line a device, of words like rbytes=1."""
    found = {}
    for line in read("io.stat").splitlines():
        device, *words = line.split()
        pairs = (word.partition("=")[::2] for word in words)
        found[device] = {name: int(value) for name, value in pairs if value.isdecimal()}
    return _stats(found)


def _stats(found: dict[str, dict[str, int]]) -> dict[str, tuple[DeviceIo, ...]]:
    devices = []
    for device, figures in found.items():
        major, _, minor = device.partition(":")
        if major.isdecimal() and minor.isdecimal():
            devices.append(
                DeviceIo(
                    major=int(major),
                    minor=int(minor),
                    read_bytes=figures.get("rbytes", 0),
                    written_bytes=figures.get("wbytes", 0),
                    reads=figures.get("rios", 0),
                    writes=figures.get("wios", 0),
                )
            )
    return {"io": tuple(sorted(devices, key=lambda one: (one.major, one.minor)))}
