"""What a lab, or a test, has left behind on this machine: a picture before, a picture after, the difference.

The picture holds what belongs to one lab by its name (processes, cgroups, mounts, folders) and the network of
the namespace it is taken in, which nothing of this project may ever change.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from deploy.labkit import cgroups, processes
from deploy.labkit.errors import CommandFailed
from deploy.labkit.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Names of things that exist; each a set of one-line descriptions."""

    processes: frozenset[str]
    cgroups: frozenset[str]
    mounts: frozenset[str]
    folders: frozenset[str]
    namespaces: frozenset[str]
    links: frozenset[str]
    addresses: frozenset[str]
    routes: frozenset[str]
    rules: frozenset[str]


def take(layout: Layout) -> Picture:
    """The machine as it is now, seen by one lab."""
    return Picture(
        processes=frozenset(_processes(layout)),
        cgroups=frozenset(
            str(mount / layout.cgroup.strip("/"))
            for mount in cgroups.hierarchies()
            if (mount / layout.cgroup.strip("/")).exists()
        ),
        mounts=frozenset(line for line in _read("/proc/self/mountinfo") if _marked(line, layout)),
        folders=frozenset(str(folder) for folder in (layout.state, layout.run) if folder.exists()),
        namespaces=frozenset(os.listdir("/run/netns")) if os.path.isdir("/run/netns") else frozenset(),
        links=_lines("ip", "-o", "-br", "link"),
        addresses=_lines("ip", "-o", "-br", "address"),
        routes=_lines("ip", "route", "show", "table", "all") | _lines("ip", "rule"),
        rules=_lines("iptables-save") | _lines("nft", "list", "ruleset"),
    )


def difference(before: Any, after: Any) -> list[str]:
    """One line for each thing that came (`left behind`) or went (`taken away`).

    Args:
        before: a `Picture`, or any other dataclass of sets of words.
        after: one of the same type.
    """
    found = []
    for field in fields(before):
        old, new = getattr(before, field.name), getattr(after, field.name)
        found += [f"{field.name}: left behind: {thing}" for thing in sorted(new - old)]
        found += [f"{field.name}: taken away: {thing}" for thing in sorted(old - new)]
    return found


def _marked(text: str, layout: Layout) -> bool:
    """Whether a path of this lab is named: its cgroup, or its folders as seen from any namespace."""
    places = (f"{layout.cgroup}/", f"nodelet-lab/{layout.name}/")
    return any(place in f"{text}/" for place in places)


def _processes(layout: Layout) -> set[str]:
    """Processes in the lab's cgroups, or in a mount namespace that shows the lab's folders."""
    found = set()
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        marks = [*_read(f"/proc/{entry}/cgroup"), *_read(f"/proc/{entry}/mountinfo")]
        if any(_marked(line, layout) for line in marks) and processes.start_time(int(entry)) is not None:
            command = " ".join(_read(f"/proc/{entry}/cmdline")).replace("\0", " ")[:80]
            found.add(f"{entry} {command}")
    return found


def _read(path: str) -> list[str]:
    with suppress(OSError):
        return Path(path).read_text(errors="replace").splitlines()
    return []


def _lines(*argv: str) -> frozenset[str]:
    """What a tool lists, without counters and comments; nothing where the kernel has no such thing."""
    try:
        text = processes.run(argv)
    except CommandFailed:
        return frozenset()
    return frozenset(line for line in text.splitlines() if line and not line.startswith((":", "#")))
