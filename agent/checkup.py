"""`nodelet preflight`: is this machine fit to be a node, and what to do about each thing that is not.

Looks and changes nothing. `agent.preflight` is what `nodelet run` insists on; here the rest is looked at too:
what a pod network needs of the kernel, and whether the machine's own firewall lets other nodes in.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from host import processes
from host.errors import HostError
from host.rules import firewalls, iptables
from host.rules.firewalls import Packet

State = Literal["ok", "missing", "note"]
_OLDEST = (5, 10)
_PROGRAMS = (
    ("iptables", "missing", "iptables", "service rules, masquerading, host ports"),
    ("nft", "missing", "nftables", "network policies"),
    ("conntrack", "note", "conntrack", "UDP flows to pods that are gone end after 30 s of silence"),
    ("modprobe", "note", "kmod", "kernel modules cannot be loaded"),
)
_PORTS = (
    ("tcp", 10250, "the API server cannot reach logs, exec and metrics"),
    ("udp", 8472, "pods of other nodes cannot reach this node's (VXLAN)"),
    ("tcp", 30000, "node ports (30000-32767) are closed"),
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `fix` says what to do where it is not "ok"."""

    what: str
    state: State
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Roots:
    """Where the machine's facts are."""

    proc: Path = Path("/proc")
    cgroups: Path = Path("/sys/fs/cgroup")
    sys: Path = Path("/sys")


def main(argv: Sequence[str]) -> int:
    """Print every check; 0 when nothing is missing."""
    parser = argparse.ArgumentParser(
        prog="nodelet preflight", description="is this machine fit to be a node?"
    )
    parser.add_argument(
        "--device", default="", help="the device towards the other nodes (of the default route)"
    )
    arguments = parser.parse_args(argv)
    found = [*kernel(Roots()), *programs(processes.which), *firewall(arguments.device or _default_device())]
    print(report(found))
    return 1 if any(check.state == "missing" for check in found) else 0


def report(checks: Sequence[Check]) -> str:
    """A line for each check, and one for each fix. Pure."""
    width = max(len(check.what) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state:7}  {check.what:{width}}  {check.text}")
        lines += [f"{'':7}  {'':{width}}  → {check.fix}"] if check.fix else []
    return "\n".join(lines)


# --- kernel ----------------------------------------------------------------------------------------------


def kernel(roots: Roots, *, release: str = "", uid: int | None = None) -> Iterator[Check]:
    """What the kernel has and how it is set."""
    root = (os.geteuid() if uid is None else uid) == 0
    yield Check(
        "root", "ok" if root else "missing", "root" if root else "not root", "" if root else "use sudo"
    )
    release = release or platform.release()
    numbers = tuple(map(int, re.findall(r"\d+", release)[:2]))
    old = numbers < _OLDEST
    yield Check("kernel", "missing" if old else "ok", release, "5.10 or later is needed" if old else "")
    yield _cgroups(roots)
    swaps = (roots.proc / "swaps").read_text().splitlines()[1:] if (roots.proc / "swaps").exists() else []
    yield Check("swap", "note" if swaps else "ok", "on" if swaps else "off", _SWAP if swaps else "")
    types = (roots.proc / "filesystems").read_text().split()
    yield _module("overlay", "overlay" in types, "images")
    bridge = roots.proc / "sys/net/bridge/bridge-nf-call-iptables"
    yield _module("br_netfilter", bridge.exists(), "services and policies between pods of one node")
    tracking = (roots.proc / "sys/net/netfilter/nf_conntrack_max").exists()
    yield _module("nf_conntrack", tracking, "services and policies")
    yield _module("vxlan", _loadable(roots, "vxlan"), "pods of other nodes; not with backend: host-gw")
    for name, wanted in (("net/ipv4/ip_forward", "1"), ("net/bridge/bridge-nf-call-iptables", "1")):
        path = roots.proc / "sys" / name
        if path.exists():
            value = path.read_text().strip()
            text = value if value == wanted else f"{value}; set to {wanted} when the node starts"
            yield Check(name.replace("/", "."), "ok" if value == wanted else "note", text)


_SWAP = "swapoff -a (and take it out of /etc/fstab), or set failSwapOn: false"


def _cgroups(roots: Roots) -> Check:
    two = roots.cgroups / "cgroup.controllers"
    if two.exists():
        lacking = {"cpu", "memory", "pids"} - set(two.read_text().split())
        version = "v2"
    else:
        lacking = {name for name in ("cpu", "memory", "pids") if not (roots.cgroups / name).is_dir()}
        version = "v1"
    if not lacking:
        return Check("cgroups", "ok", version)
    fix = "boot with cgroup_enable=memory" if "memory" in lacking else "mount -t cgroup2 none /sys/fs/cgroup"
    return Check("cgroups", "missing", f"{version} without {', '.join(sorted(lacking))}", fix)


def _module(name: str, there: bool, used_for: str) -> Check:
    if there:
        return Check(name, "ok", "in the kernel")
    fix = f"modprobe {name}, and name it in /etc/modules-load.d/nodelet.conf"
    return Check(name, "missing", f"not loaded: {used_for}", fix)


def _loadable(roots: Roots, name: str) -> bool:
    """Built in, loaded, or there to be loaded by the first device that needs it."""
    if (roots.sys / "module" / name).is_dir():
        return True
    folder = Path("/lib/modules") / platform.release()
    listed = (folder / "modules.builtin", folder / "modules.dep")
    return any(f"/{name}.ko" in path.read_text(errors="replace") for path in listed if path.exists())


# --- programs and firewalls ------------------------------------------------------------------------------


def programs(which: Callable[[str], str | None]) -> Iterator[Check]:
    """The helpers that are executed."""
    for program, state, package, lacking in _PROGRAMS:
        path = which(program)
        if path is not None:
            yield Check(program, "ok", path)
        else:
            fix = f"apt-get install {package}"
            yield Check(program, "missing" if state == "missing" else "note", f"not found: {lacking}", fix)


def firewall(device: str) -> Iterator[Check]:
    """What of other machines' packets this machine's own filters drop."""
    try:
        save = iptables.save("filter")
        found = iptables.back_end()
    except HostError:
        save = ""
    else:
        mixed = f"{found.version}, and {found.other_rules} rules of its other back end"
        fix = "keep to one: update-alternatives --config iptables"
        yield Check(
            "iptables rules",
            "note" if found.other_rules else "ok",
            mixed if found.other_rules else found.version,
            fix if found.other_rules else "",
        )
    try:
        ruleset = json.loads(processes.run(["nft", "-j", "list", "ruleset"]).stdout or b"{}")
    except (HostError, ValueError):
        ruleset = {}
    yield from judge(save, ruleset, device)


def judge(save: str, ruleset: object, device: str) -> Iterator[Check]:
    """Each port that others need of a node. Pure."""
    for protocol, port, effect in _PORTS:
        packet = Packet(protocol, port, device)
        reason = firewalls.refused_by_iptables(save, packet) or firewalls.refused_by_nftables(ruleset, packet)
        what = f"{port}/{protocol}"
        if reason:
            ufw = "-A ufw-" in save and reason.startswith("iptables")
            yield Check(what, "missing", f"{effect}: {reason}", _opening(reason, protocol, port, ufw=ufw))
        else:
            yield Check(what, "ok", f"no rule found that closes it on {device}")


def _opening(reason: str, protocol: str, port: int, *, ufw: bool) -> str:
    """How the firewall that wrote the rule is told."""
    ports = "30000-32767" if port == 30000 else str(port)
    if "firewalld" in reason:
        return f"firewall-cmd --permanent --add-port={ports}/{protocol} && firewall-cmd --reload"
    if ufw:
        return f"ufw allow {ports.replace('-', ':')}/{protocol}"
    return f"accept {protocol} port {ports} before that"


def _default_device(route: Path = Path("/proc/net/route")) -> str:
    """The device of the default route, "" without one."""
    for line in route.read_text().splitlines()[1:]:
        words = line.split()
        if words[1] == "00000000" and words[7] == "00000000":
            return words[0]
    return ""
