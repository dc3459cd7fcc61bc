"""Pressure stall information of a cgroup (Documentation/accounting/psi.rst; kernel 4.20, cgroup2)."""

from __future__ import annotations

from host.cgroups.files import Read
from host.cgroups.model import Pressure, Stall

RESOURCES = ("cpu", "memory", "io")


def stats(read: Read) -> dict[str, Pressure | None]:
    """The figures of the three files; None where the kernel has no PSI or it is switched off.

    Args:
        read: of the cgroup2 folder, which has these files whatever its controllers are.
    """
    return {f"{name}_pressure": parse(read(f"{name}.pressure")) for name in RESOURCES}


def parse(text: str) -> Pressure | None:
    """Two lines like `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`; before 5.13 cpu has no `full`."""
    lines = {}
    for line in text.splitlines():
        kind, *words = line.split()
        figures = dict(word.partition("=")[::2] for word in words)
        if figures.keys() >= {"avg10", "avg60", "avg300", "total"}:
            lines[kind] = Stall(
                avg10=float(figures["avg10"]),
                avg60=float(figures["avg60"]),
                avg300=float(figures["avg300"]),
                total_us=int(figures["total"]),
            )
    return Pressure(some=lines["some"], full=lines.get("full", Stall())) if "some" in lines else None
