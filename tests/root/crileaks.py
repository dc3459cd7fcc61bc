"""What pods of one CRI daemon have left on the machine: a picture before, a picture after, the difference."""

from __future__ import annotations

import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.labkit.leaks import difference
from host.cgroups import Cgroups
from host.netlink import Netlink

__all__ = ["Picture", "difference", "of_pods", "take"]

_STATE = ("state/sandboxes", "state/containers", "state/runtime/sandboxes", "root/containers")
_STORE = ("root/images/tmp", "root/images/layers", "root/images/blobs/sha256", "root/images/images")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Names of things that exist; each a set of one-line descriptions."""

    mounts: frozenset[str]
    namespaces: frozenset[str]
    cgroups: frozenset[str]
    links: frozenset[str]
    leases: frozenset[str]
    """Of addresses, and records of host ports."""
    processes: frozenset[str]
    descriptors: frozenset[str]
    """The daemon's, as kind and number; empty where two daemons are compared."""
    state: frozenset[str]
    store: frozenset[str]
    """Of the image store: names of layers, blobs, records and unfinished work."""

    def without_descriptors(self) -> Picture:
        """For a comparison across a restart of the daemon."""
        return replace(self, descriptors=frozenset())


def take(folder: Path, cgroup: str, *, daemon: int = 0) -> Picture:
    """The machine as it is now, seen by one daemon.

    Args:
        folder: what the daemon has all its folders in.
        cgroup: the parent of its pods.
        daemon: its process id, in whose mount namespace to look; 0 for our own and no descriptors.
    """
    return Picture(
        mounts=frozenset(line for line in _lines(daemon or os.getpid(), "mountinfo") if f"{folder}/" in line),
        namespaces=frozenset(_names(folder / "netns")),
        cgroups=frozenset(_cgroups(cgroup)),
        links=frozenset(links()),
        leases=frozenset(
            str(path) for pattern in ("*/leases/*", "*/ports/*,*") for path in (folder / "cni").glob(pattern)
        ),
        processes=frozenset(_processes(folder, cgroup)),
        descriptors=frozenset(_descriptors(daemon)) if daemon else frozenset(),
        state=frozenset(f"{place}/{name}" for place in _STATE for name in _names(folder / place)),
        store=frozenset(f"{place}/{name}" for place in _STORE for name in _names(folder / place)),
    )


def of_pods(picture: Picture) -> list[str]:
    """What is there only while there are pods."""
    kinds = ("mounts", "namespaces", "cgroups", "links", "leases", "processes", "state")
    return sorted(f"{kind}: {name}" for kind in kinds for name in getattr(picture, kind))


def links() -> set[str]:
    """The devices of pods in this namespace; /sys may show those of another one."""
    with Netlink() as netlink:
        return {link.name for link in netlink.links() if link.kind in ("veth", "ifb")}


def _names(folder: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def _lines(pid: int, name: str) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace").splitlines()
    return []


def _cgroups(parent: str) -> set[str]:
    """Groups of containers; a pod's own group is the kubelet's to make and to remove."""
    found = set()
    for top in Cgroups().folders(parent):
        for folder, below, _ in os.walk(top):
            if Path(folder) != top:
                found |= {f"{folder}/{name}" for name in below}
    return found


def _processes(folder: Path, cgroup: str) -> set[str]:
    """Supervisors by the file their errors go to, everything else by its cgroup; with their first words."""
    found = set()
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        errors = ""
        with suppress(OSError):
            errors = os.readlink(f"/proc/{entry}/fd/2")
        mine = errors.startswith(f"{folder}/state/runtime/")
        if mine or any(f"{cgroup}/" in f"{line}/" for line in _lines(int(entry), "cgroup")):
            facts = dict(line.split(":\t", 1) for line in _lines(int(entry), "status") if ":\t" in line)
            if facts and not (facts["State"].startswith("Z") and facts["PPid"] == "1"):  # init's to reap
                found.add(f"{entry} {facts['Name']} {facts['State']}")
    return found


def _descriptors(pid: int) -> set[str]:
    """How many of each kind: numbers of inodes are not comparable."""
    kinds: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            kinds[re.sub(r"\[\d+\]", "", os.readlink(f"/proc/{pid}/fd/{name}"))] += 1
    return {f"{count} of {kind}" for kind, count in kinds.items()}
