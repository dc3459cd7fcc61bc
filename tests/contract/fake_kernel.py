"""A kernel that behaves, as far as the overlay asks: one VXLAN device and its entries, no netlink.

The cases in `test_overlay_kernel.py` hold for it and for the real one.
"""

import ipaddress
from dataclasses import replace

from cni.vxlan import Arp, Entries, Fdb
from host.errors import NotFound
from host.rtnl import Link, Route

UNDERLAY, DEVICE = 2, 7
"""Indices of the node's own device and of the VXLAN device."""


class FakeKernel:
    """State, not-found and replacement, as the kernel has them; no netlink."""

    def __init__(self):
        self.device = None
        self.tables = Entries()
        self.batches = []
        self.rules_removed = 0

    def underlay(self, host):
        if str(host) != "192.0.2.1":
            raise NotFound(2, f"find the device of node IP {host}")
        own = ipaddress.ip_interface("192.0.2.1/24")
        return Link(UNDERLAY, "eth0", "", "02:ff:00:00:00:01", 1500, True, 0), own

    def keep_hearing_routers(self, device):
        self.heard = device

    def find_link(self, name):
        return self.device if self.device and self.device.name == name else None

    def ensure_device(self, wanted):
        if self.device is None:
            self.device = Link(DEVICE, wanted.name, "vxlan", wanted.mac, wanted.mtu, True, 0)
        self.device = replace(self.device, mac=wanted.mac, mtu=wanted.mtu)
        return self.device, ""

    def delete_device(self, name):
        if self.find_link(name):
            self.device = None
            self.tables = Entries()  # the kernel drops all entries of a device along with it

    def keep_bridge(self, name, wanted, *, mtu):
        return []

    def entries(self, device, version):
        return self.tables if version == 4 else Entries()

    def remove_rules(self):
        self.rules_removed += 1

    def apply(self, ops, *, device):
        self.batches.append(list(ops))
        held = {_key(entry): entry for entry in (*self.tables.arps, *self.tables.fdbs, *self.tables.routes)}
        for op in ops:
            if not op.remove:
                held[_key(op.entry)] = op.entry
            elif held.get(_key(op.entry)) == op.entry:
                del held[_key(op.entry)]
        kinds = (Arp, Fdb, Route)
        self.tables = Entries(*(frozenset(e for e in held.values() if isinstance(e, k)) for k in kinds))
        return []


def _key(entry):
    """What an entry replaces when it is set."""
    if isinstance(entry, Arp):
        return Arp, entry.address
    return (Fdb, entry.mac) if isinstance(entry, Fdb) else (Route, entry.destination)
