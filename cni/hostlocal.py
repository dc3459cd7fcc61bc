"""Addresses that the reference IPAM plugin, host-local, holds: pods of before a change of the network plugin.

    <folder>/<network>/<address>               container id, line break, interface
                      /last_reserved_ip.<n>, lock

They are read at every ADD and never written: such a pod is disconnected with the configuration it was
connected with, so that host-local itself gives its address back. Its files outlive the machine, its pods do
not: one of an earlier boot holds nothing (containernetworking/plugins#252).
"""

from __future__ import annotations

import ipaddress
import os
import time
from contextlib import suppress
from pathlib import Path

from host.rtnl import IPAddress


def held(folder: Path | None, *, booted_at: float | None = None) -> frozenset[IPAddress]:
    """The addresses that host-local has given to pods of this boot, on any of its networks.

    Args:
        folder: its `dataDir`; None, or one that is not there, holds nothing.
        booted_at: when the machine was started, in seconds since 1970; None: ask the clock.
    """
    if folder is None:
        return frozenset()
    since = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) if booted_at is None else booted_at
    found = set()
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as networks:
        for network in networks:
            if network.is_dir(follow_symlinks=False):
                found |= _held_in(network.path, since)
    return frozenset(found)


def _held_in(network: str, since: float) -> set[IPAddress]:
    found = set()
    with suppress(FileNotFoundError), os.scandir(network) as entries:
        for entry in entries:
            with suppress(ValueError, FileNotFoundError):
                address = ipaddress.ip_address(entry.name)
                if entry.stat(follow_symlinks=False).st_mtime >= since:
                    found.add(address)
    return found
