"""The switches under /proc/sys that the overlay turns, each for devices by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from host.errors import from_oserror

PROC_SYS = Path("/proc/sys")
_OFF, _STRICT, _LOOSE = 0, 1, 2  # rp_filter in the kernel's Documentation/networking/ip-sysctl.rst

_NO_LINK_LOCAL = "1"  # addr_gen_mode, there too
_HEAR, _HEAR_THOUGH_FORWARDING = 1, 2  # accept_ra


def disable_ipv6(device: str, proc_sys: Path = PROC_SYS) -> None:
    """No IPv6 on a device: a tunnel for IPv4 needs no router solicitations to every peer."""
    path = proc_sys / "net/ipv6/conf" / device / "disable_ipv6"
    if path.exists():  # not in a kernel without IPv6
        _write(path, "1")


def quieten_ipv6(device: str, proc_sys: Path = PROC_SYS) -> None:
    """No IPv6 address but those we give (so no router is asked for one), and none learned from a peer."""
    conf = proc_sys / "net/ipv6/conf" / device
    _write(conf / "addr_gen_mode", _NO_LINK_LOCAL)
    _write(conf / "accept_ra", "0")


def keep_hearing_routers(device: str, proc_sys: Path = PROC_SYS) -> bool:
    """Let a device that has its routes from router advertisements keep them; whether that had to be said.

    A kernel that forwards ignores advertisements, and drops the default route that came by one, unless
    accept_ra is 2. So this comes before forwarding is turned on.
    """
    path = proc_sys / "net/ipv6/conf" / device / "accept_ra"
    if _read(path) != _HEAR:
        return False
    _write(path, str(_HEAR_THOUGH_FORWARDING))
    return True


def loosen_reverse_path(devices: Sequence[str], proc_sys: Path = PROC_SYS) -> list[str]:
    """Devices whose reverse path filter was strict and is loose now.

    The kernel takes the larger of the values for `all` and for the device: a strict `all` is overruled by a
    loose device, and other devices stay as strict as they were.
    """
    conf = proc_sys / "net/ipv4/conf"
    changed = []
    for device in devices:
        path = conf / device / "rp_filter"
        if max(_read(conf / "all" / "rp_filter"), _read(path)) == _STRICT:
            _write(path, str(_LOOSE))
            changed.append(device)
    return changed


def _read(path: Path) -> int:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return _OFF
    except OSError as exc:
        raise from_oserror(exc, f"read {path}") from exc


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(value)
    except OSError as exc:
        raise from_oserror(exc, f"write {path}") from exc
