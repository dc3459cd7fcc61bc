"""A systemd that behaves: transient units as folders of a cgroup tree, without D-Bus."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from host.cgroups import units
from host.errors import Exists, from_errno


class FakeSystemd:
    """`host.systemd.Systemd` over a temporary folder."""

    def __init__(self, root: Path, *, number: int = 252, make: Callable[[Path], None] = Path.mkdir) -> None:
        """For a version `number`; `root` stands for the mount of cgroup2, `make` makes one cgroup in it."""
        self.root, self._make = root, make
        self._number = number
        self.units: dict[str, dict[str, object]] = {}
        """Properties by unit."""

    def version(self) -> int:
        return self._number

    def start(self, unit: str, properties: list[units.Property]) -> None:
        if unit in self.units:
            raise Exists(errno.EEXIST, f"start {unit}")
        wanted = {name: value for name, (_, value) in properties}
        path = units.expand_slice(unit) if unit.endswith(".slice") else self._scope(unit, wanted)
        folder = self.root
        for part in path.strip("/").split("/"):
            folder /= part
            if not folder.exists():
                self._make(folder)
        self.units[unit] = wanted

    def _scope(self, unit: str, wanted: dict[str, Any]) -> str:
        if not any(os.path.exists(f"/proc/{pid}") for pid in wanted["PIDs"]):
            raise from_errno(errno.EIO, f"start {unit}", "its job ended as 'failed'")
        return f"{units.expand_slice(wanted['Slice'])}/{unit}"

    def set_properties(self, unit: str, properties: list[units.Property]) -> None:
        if unit not in self.units:
            raise from_errno(errno.ENOENT, f"set properties of {unit}")
        self.units[unit] |= {name: value for name, (_, value) in properties}

    def stop(self, unit: str) -> None:
        self.units.pop(unit, None)
