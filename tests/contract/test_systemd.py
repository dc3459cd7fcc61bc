"""What a manager of units promises, asked of the fake and, where systemd is process 1, of systemd."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_systemd import FakeSystemd

from host.cgroups import Cgroups, units
from host.cgroups.driver import BOOTED
from host.cgroups.systemd import UnitManager
from host.errors import Exists, HostError, NotFound

NAME = f"nodelettest{os.getpid()}"
SLICE = f"{NAME}.slice"
POD = f"/{SLICE}/{NAME}-pod1.slice"


@pytest.fixture(params=["fake", "systemd"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[UnitManager, Path]]:
    """A manager, and the root of its cgroups."""
    if request.param == "fake":
        yield FakeSystemd(tmp_path), tmp_path
        return
    if not BOOTED.is_dir() or Cgroups().mode != "v2" or os.geteuid() != 0:
        pytest.skip("needs root, systemd as process 1 and cgroup2 alone")
    from host.systemd import Systemd

    systemd = Systemd()
    yield systemd, Path("/sys/fs/cgroup")
    systemd.stop(SLICE)
    systemd.close()


@pytest.fixture
def sleeper() -> Iterator[Callable[[], int]]:
    """A function that starts a process; they end with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> int:
        started.append(subprocess.Popen(["sleep", "1000"]))
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.wait()


def scope(name: str, pid: int) -> list[units.Property]:
    return units.new_scope(f"{POD}/{name}", holder=pid, limits=[])


def test_it_has_a_version(world: tuple[UnitManager, Path]) -> None:
    assert world[0].version() >= units.OLDEST


def test_a_slice_is_where_its_name_says(world: tuple[UnitManager, Path]) -> None:
    manager, root = world
    manager.start(f"{NAME}-pod1.slice", units.new_slice(POD, limits=[]))
    assert (root / POD.strip("/")).is_dir()
    with pytest.raises(Exists):
        manager.start(f"{NAME}-pod1.slice", units.new_slice(POD, limits=[]))
    manager.set_properties(f"{NAME}-pod1.slice", [("TasksMax", ("t", 50))])
    manager.stop(f"{NAME}-pod1.slice")
    manager.stop(f"{NAME}-pod1.slice")


def test_a_scope_is_in_its_slice(world: tuple[UnitManager, Path], sleeper: Callable[[], int]) -> None:
    manager, root = world
    name = units.scope_name("ab12")
    manager.start(name, scope(name, sleeper()))
    assert (root / POD.strip("/") / name).is_dir()
    with pytest.raises(Exists):
        manager.start(name, scope(name, sleeper()))
    assert (root / POD.strip("/") / name).is_dir(), "the one that is there stays"
    manager.set_properties(name, [("TasksMax", ("t", 50)), ("MemoryMax", ("t", units.INFINITY))])
    manager.stop(name)
    manager.stop(name)
    with pytest.raises(NotFound):
        manager.set_properties(name, [("TasksMax", ("t", 60))])


def test_a_scope_of_a_dead_process_is_refused_and_leaves_nothing(world: tuple[UnitManager, Path]) -> None:
    manager, _ = world
    name = units.scope_name("cd34")
    dead = subprocess.Popen(["true"])
    dead.wait()
    with pytest.raises(HostError):
        manager.start(name, scope(name, dead.pid))
    with pytest.raises(NotFound):
        manager.set_properties(name, [("TasksMax", ("t", 60))])


def test_what_is_not_there_is_stopped_already(world: tuple[UnitManager, Path]) -> None:
    world[0].stop(f"{NAME}-none.slice")
    with pytest.raises(NotFound):
        world[0].set_properties(units.scope_name("ef56"), [("TasksMax", ("t", 60))])
