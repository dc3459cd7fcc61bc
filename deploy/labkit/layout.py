"""Where everything of one lab is: names, addresses, folders. Pure; nothing here touches the machine.

Several labs stand side by side: each has a name, and the name is in every path and cgroup. The addresses are
the same in all of them, because each lab's network is a set of namespaces of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deploy.labkit import versions

CHECKOUT = Path(__file__).resolve().parents[2]
SWITCH = "switch"
CONTROL = "control"
NETWORK = "10.199.0"
PREFIX = 24
GATEWAY = f"{NETWORK}.254"
"""Default route of every machine of the lab. Nobody has this address, so nothing leaves."""
SWITCH_ADDRESS = f"{NETWORK}.1"
CONTROL_ADDRESS = f"{NETWORK}.2"
FIRST_NODE = 11
REGISTRY_PORT = 5000
API_PORT = 6443
POD_NETWORK = "10.244.0.0/16"
SERVICE_NETWORK = "10.96.0.0/16"
DNS_ADDRESS = "10.96.0.10"
DOMAIN = "cluster.local"


Kind = Literal["nodelet", "stock", "kubelet"]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of the lab.

    Attributes:
        name: host name and Node name.
        index: position in the address plan, from 0.
        kind: "nodelet"; "stock", kubelet and kube-proxy with containerd; or "kubelet", the same two with
            nodelet-cri and nodelet-cni.
    """

    name: str
    index: int
    kind: Kind = "nodelet"

    @property
    def address(self) -> str:
        """Its address on the switch."""
        return f"{NETWORK}.{FIRST_NODE + self.index}"


def _cache() -> Path:
    return Path(os.environ.get("NODELET_LAB_CACHE") or "/var/cache/nodelet/lab")


def _binaries() -> Path | None:
    named = os.environ.get("NODELET_LAB_BIN")
    return Path(named) if named else None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The places of one lab.

    Attributes:
        name: the lab's name.
        cache: shared by all labs: binaries, the Go build's folders, packages, the registry's content.
        named_binaries: a folder of the user's with ready binaries, or None.
        checkout: where this project's files are.
        state_root: parent of the lab's persistent folder.
        run_root: parent of the lab's folder of process records.
    """

    name: str = "lab"
    cache: Path = field(default_factory=_cache)
    named_binaries: Path | None = field(default_factory=_binaries)
    checkout: Path = CHECKOUT
    state_root: Path = Path("/var/lib/nodelet-lab")
    run_root: Path = Path("/run/nodelet-lab")

    @property
    def option(self) -> str:
        """What a command line of this lab needs beside its verb, with a space behind it."""
        return "" if self.name == "lab" else f"--name {self.name} "

    @property
    def state(self) -> Path:
        """Certificates, etcd's data, the nodes' disks."""
        return self.state_root / self.name

    @property
    def run(self) -> Path:
        """Records of running programs."""
        return self.run_root / self.name

    @property
    def logs(self) -> Path:
        """One folder per machine, one file per program."""
        return self.state / "logs"

    @property
    def pki(self) -> Path:
        """The cluster's certificates."""
        return self.state / "pki"

    @property
    def kubeconfigs(self) -> Path:
        """admin.conf and the others, as kubeadm names them."""
        return self.state / "kubeconfigs"

    @property
    def registry(self) -> Path:
        """The lab registry's content."""
        return self.state / "registry"

    @property
    def cgroup(self) -> str:
        """Parent of all the lab's cgroups, relative to every hierarchy's mount."""
        return f"/nodelet-lab-{self.name}"

    def node_cgroup(self, machine: str) -> str:
        """A machine's cgroup root."""
        return f"{self.cgroup}/{machine}"

    def machine(self, name: str) -> Path:
        """A machine's disk: what is mounted over the real machine's folders."""
        return self.state / "machines" / name

    def log(self, machine: str, program: str) -> Path:
        """A program's log file."""
        return self.logs / machine / f"{program}.log"

    def binary(self, project: versions.Project, program: str | None = None) -> Path:
        """Where a program is in the cache."""
        return self.cache / "bin" / project.folder / (program or project.programs[0])

    @property
    def kubectl(self) -> Path:
        """kubectl in the cache."""
        return self.binary(versions.CONTROL_PLANE, "kubectl")
