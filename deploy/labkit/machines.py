"""The lab's machines: a network, a mount and a UTS namespace each, held by a sleeping process, on one switch.

A machine sees this machine's files, but /etc, /opt, /var/lib and /var/log are overlays whose changes are
kept in memory, /run and /tmp are its own, and the folders that node software keeps its data in are on the
machine's disk below the lab's folder (container root file systems are overlay mounts, and these do not go on
top of overlay mounts). So nothing a node does to its file system reaches the real machine.

Devices are made inside the switch's network namespace and moved from there: the real machine never has one.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.labkit import cgroups, processes
from deploy.labkit.errors import LabError
from deploy.labkit.layout import (
    CONTROL,
    CONTROL_ADDRESS,
    GATEWAY,
    PREFIX,
    SWITCH,
    SWITCH_ADDRESS,
    Layout,
)
from deploy.labkit.processes import Program, Records

HOLDER = "machine"
BRIDGE = "lab0"
DISKS = (
    "/etc/cni/net.d",
    "/etc/containerd",
    "/etc/kubernetes",
    "/etc/nodelet",
    "/opt/cni/bin",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/lib/nodelet",
    "/var/log/containers",
    "/var/log/pods",
    "/usr/libexec/kubernetes",
)
"""Folders of a node that are on its disk."""
OVERLAYS = ("/etc", "/opt", "/var/lib", "/var/log", "/usr/libexec")

_SETUP = r"""
set -eu
name=$1 disk=$2 state=$3
shift 3  # what is left are the folders that must stay in sight
mount --make-rshared /
hostname "$name"
ip link set lo up
resolv=$(readlink -f /etc/resolv.conf || echo /etc/resolv.conf)
mkdir -p "$disk/tmp"
chmod 1777 "$disk/tmp"
number=0
for folder; do
    number=$((number + 1))
    mkdir -p "$disk/sight/$number"
    mount --bind "$folder" "$disk/sight/$number"
done
mount -t tmpfs -o mode=755,size=512m tmpfs /run
mkdir -p /run/lock /run/netns /run/overlays /run/disk /run/lab
mount --bind "$state" /run/lab
mount --rbind "$disk" /run/disk
for over in $OVERLAYS; do
    [ -d "$over" ] || continue
    upper=/run/overlays$over
    mkdir -p "$upper/up" "$upper/work"
    mount -t overlay overlay -o "lowerdir=$over,upperdir=$upper/up,workdir=$upper/work" "$over"
done
# Not through the overlay, which does not promise to show what changes below it.
mkdir -p "$state"
mount --bind /run/lab "$state"
for folder in $DISKS; do
    mkdir -p "$folder" "/run/disk$folder"
    mount --bind "/run/disk$folder" "$folder"
done
mount --bind /run/disk/tmp /tmp
number=0
for folder; do
    number=$((number + 1))
    case $folder in
    /tmp/*|/run/*) mkdir -p "$folder"; mount --bind "/run/disk/sight/$number" "$folder";;
    esac
done
mkdir -p "$(dirname "$resolv")"
rm -f "$resolv" /etc/hosts
cp /run/disk/resolv.conf "$resolv"
cp /run/disk/hosts /etc/hosts
echo 1 > /proc/sys/net/ipv4/ip_forward
echo ready
exec sleep infinity > /dev/null
"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A running machine.

    Attributes:
        name: its name in the lab.
        holder: the process that keeps its namespaces.
    """

    name: str
    holder: Program

    @property
    def netns(self) -> str:
        """Path of its network namespace."""
        return f"/proc/{self.holder.pid}/ns/net"

    def enter(self, *, network_only: bool = False) -> list[str]:
        """Argv that enters it and then runs what follows; with the caller's own files if `network_only`."""
        spaces = ["-n"] if network_only else ["-n", "-m", "-u"]
        return ["nsenter", "-t", str(self.holder.pid), *spaces, *([] if network_only else ["--wd=/"]), "--"]


def find(records: Records, name: str) -> Machine | None:
    """A machine that runs, or None."""
    holder = records.read(name, HOLDER)
    return Machine(name=name, holder=holder) if holder and processes.alive(holder) else None


def ensure(layout: Layout, records: Records, name: str, *, address: str | None) -> tuple[Machine, bool]:
    """A running machine and whether it was started now; what is left of a dead one is removed first.

    Args:
        layout: the lab.
        records: its programs.
        name: the machine.
        address: its address on the switch, which must run; None for the switch itself.
    """
    found = find(records, name)
    if found is not None:
        return found, False
    remove(layout, records, name)
    cgroups.make(f"{layout.node_cgroup(name)}/{cgroups.PROGRAMS}")
    machine = _start(layout, records, name, address)
    if address is None:
        _set_up_switch(machine)
    else:
        switch = find(records, SWITCH)
        if switch is None:
            raise LabError("the lab's switch is not running; run: lab up")
        _connect(switch, machine, address)
    return machine, True


def _start(layout: Layout, records: Records, name: str, address: str | None) -> Machine:
    disk = layout.machine(name)
    disk.mkdir(parents=True, exist_ok=True)
    (disk / "resolv.conf").write_text(f"nameserver {SWITCH_ADDRESS}\n")
    (disk / "hosts").write_text(
        f"127.0.0.1 localhost\n{address or SWITCH_ADDRESS} {name}\n{CONTROL_ADDRESS} {CONTROL} registry\n"
    )
    log = layout.log(name, HOLDER)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    holder = processes.start(
        records,
        name,
        HOLDER,
        ["/bin/sh", "-c", _SETUP, HOLDER, name, str(disk), str(layout.state), *_in_sight(layout)],
        prefix=["unshare", "-n", "-m", "-u", "--propagation", "private", "--"],
        log=log,
        cgroups=cgroups.joined(layout.node_cgroup(name)),
        env={"DISKS": " ".join(DISKS), "OVERLAYS": " ".join(OVERLAYS)},
    )
    _wait_ready(log, holder, name)
    return Machine(name=name, holder=holder)


def _in_sight(layout: Layout) -> list[str]:
    """Folders programs are started from, which a machine's own /tmp and /run must not hide."""
    return [str(folder) for folder in (layout.checkout, layout.cache, sys.prefix) if Path(folder).is_dir()]


def _wait_ready(log: Path, holder: Program, name: str, seconds: float = 20.0) -> None:
    """Wait until the setup script has said that it is done."""
    deadline = time.monotonic() + seconds
    while "ready\n" not in (text := log.read_text()):
        if not processes.alive(holder) or time.monotonic() > deadline:
            raise LabError(f"machine {name} did not start: {text.strip() or 'no message'}")
        time.sleep(0.01)


def remove(layout: Layout, records: Records, name: str) -> None:
    """End everything in a machine; its namespaces and devices go with its last process. Its disk stays."""
    relative = layout.node_cgroup(name)
    cgroups.kill(relative)
    for program in records.programs(name):
        processes.stop(records.read(name, program), signals=processes.KILL)
        records.forget(name, program)
    cgroups.remove(relative)


def _set_up_switch(switch: Machine) -> None:
    _ip(
        switch,
        f"link add {BRIDGE} type bridge",
        f"address add {SWITCH_ADDRESS}/{PREFIX} dev {BRIDGE}",
        f"link set {BRIDGE} up",
        f"route add default via {GATEWAY}",
    )


def _connect(switch: Machine, machine: Machine, address: str) -> None:
    """A cable from the machine's eth0 to the switch; one left over from a machine that died is replaced."""
    port = f"p-{machine.name}"
    processes.run([*switch.enter(network_only=True), "ip", "link", "delete", port], check=False)
    _ip(
        switch,
        f"link add {port} type veth peer name eth0 netns {machine.holder.pid}",
        f"link set {port} master {BRIDGE} up",
    )
    _ip(
        machine,
        f"address add {address}/{PREFIX} dev eth0",
        "link set eth0 up",
        f"route add default via {GATEWAY}",
    )


def add_route(machine: Machine, network: str, *, via: str) -> None:
    """Lead a network to another machine, as clusters lead pods' to the control plane: it calls them."""
    _ip(machine, f"route replace {network} via {via}")


def _ip(machine: Machine, *lines: str) -> None:
    argv = [*machine.enter(network_only=True), "ip", "-batch", "-"]
    processes.run(argv, input="".join(f"{line}\n" for line in lines))
