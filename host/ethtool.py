"""A device's offloads, by the ioctl that ethtool(8) used first and every kernel still has."""

from __future__ import annotations

import array
import fcntl
import socket
import struct

from host.errors import from_oserror
from host.rtnl import name_bytes

_SIOCETHTOOL = 0x8946  # linux/sockios.h
_ETHTOOL_GTXCSUM, _ETHTOOL_STXCSUM = 0x16, 0x17  # linux/ethtool.h
_IFREQ = struct.Struct("16sP16x")


def transmit_checksums(name: str) -> bool:
    """Whether the kernel leaves checksums of what the device sends to it ("tx-checksumming").

    Raises:
        NotFound: no such device.
        HostError: its driver does not know.
    """
    return bool(_call(name, _ETHTOOL_GTXCSUM, 0))


def set_transmit_checksums(name: str, on: bool) -> None:
    """Leave them to the device, or compute them before it. Raises as `transmit_checksums`."""
    _call(name, _ETHTOOL_STXCSUM, int(on))


def _call(name: str, command: int, value: int) -> int:
    data = array.array("I", (command, value))  # struct ethtool_value
    address, _ = data.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, _IFREQ.pack(name_bytes(name), address))
        except OSError as exc:
            raise from_oserror(exc, f"ask {name} for its checksum offload") from exc
    return data[1]
