"""What a machine of the lab should run, and making it so."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from deploy.labkit import cgroups, processes
from deploy.labkit.api import wait_for
from deploy.labkit.layout import Layout
from deploy.labkit.machines import Machine
from deploy.labkit.processes import Records

_SOCKET_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Service:
    """A program a machine should run.

    Attributes:
        name: its name in records and logs.
        argv: what to run.
        env: variables beside PATH and HOME.
        socket: Unix socket that is there before the next program is started; empty for none.
        needs_pod_range: it ends at once on a node that the cluster has not given a pod range yet.
    """

    name: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    socket: str = ""
    needs_pod_range: bool = False


def ensure_service(lab: Layout, records: Records, machine: Machine, service: Service) -> bool:
    """Start a program unless it runs already with these arguments; whether it was started now."""
    running = records.read(machine.name, service.name)
    if running is not None and running.argv == service.argv and processes.alive(running):
        return False
    processes.stop(running)
    processes.start(
        records,
        machine.name,
        service.name,
        service.argv,
        log=lab.log(machine.name, service.name),
        prefix=machine.enter(),
        cgroups=cgroups.joined(lab.node_cgroup(machine.name)),
        env=dict(service.env),
    )
    if service.socket:
        look = [*machine.enter(), "test", "-S", service.socket]
        wait_for(
            f"socket {service.socket} of {service.name}",
            lambda: subprocess.run(look, check=False).returncode == 0,
            seconds=_SOCKET_SECONDS,
        )
    return True
