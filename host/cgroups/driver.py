"""Which cgroup driver a program uses, and that driver made ready.

`auto` is systemd where systemd is process 1 and cgroup2 is alone, because there it is the tree's one writer
and the field's programs take it so: kubeadm configures kubelets for it, kubelets ask the runtime which driver
to follow (KEP-4033), and two managers of one tree see each other's limits undone. Everywhere else it is
cgroupfs: without systemd there is nobody to ask, and systemd has given up cgroup v1.
"""

from __future__ import annotations

from pathlib import Path

from host.cgroups.tree import Cgroups, Mode

BOOTED = Path("/run/systemd/system")
"""There while systemd is process 1 (sd_booted(3))."""


def choose(setting: str, *, mode: Mode, systemd_runs: bool) -> str:
    """The driver that a setting means on a machine: `cgroupfs` or `systemd`.

    Args:
        setting: `auto`, or a driver's name.
        mode: how the machine's cgroups are mounted.
        systemd_runs: systemd is process 1.
    """
    if setting != "auto":
        return setting
    return "systemd" if systemd_runs and mode == "v2" else "cgroupfs"


def load(setting: str, root: Path | str = "/sys/fs/cgroup", *, booted: Path = BOOTED) -> Cgroups:
    """The cgroups of this machine under the driver that a setting means.

    Raises:
        InputError: systemd was asked for by name, and this machine cannot have it.
        HostError: systemd does not answer.
    """
    cgroups = Cgroups(root)
    if choose(setting, mode=cgroups.mode, systemd_runs=booted.is_dir()) == "cgroupfs":
        return cgroups
    # Only here: neither supervisors nor machines without systemd are to load a D-Bus library.
    from host.cgroups.systemd import SystemdCgroups
    from host.systemd import Systemd

    return SystemdCgroups(root, Systemd())
