"""What a machine of the lab should run, and making it so."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.labkit import cgroups, processes
from deploy.labkit.layout import Layout
from deploy.labkit.machines import Machine
from deploy.labkit.processes import Records


@dataclass(frozen=True, kw_only=True)
class Service:
    """A program a machine should run.

    Attributes:
        name: its name in records and logs.
        argv: what to run.
        env: variables beside PATH and HOME.
    """

    name: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()


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
    return True
