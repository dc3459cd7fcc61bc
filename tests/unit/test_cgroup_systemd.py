"""The systemd driver over a tree of plain folders and a systemd that behaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_systemd import FakeSystemd

from host.cgroups import Resources, folders, units
from host.cgroups.systemd import SystemdCgroups
from host.errors import Exists, InputError, NotFound

PARENT = "kubepods-pod1.slice"
POD = f"/kubepods.slice/{PARENT}"


CONTAINER = f"{POD}/{units.scope_name('ab')}"
FILES = ("cgroup.procs", "cgroup.subtree_control", "cpu.weight", "cpu.max", "memory.max", "pids.max")


def make(folder: Path) -> None:
    """A cgroup with the files that a kernel puts there."""
    folder.mkdir()
    for name in FILES:
        (folder / name).touch()
    (folder / "cgroup.controllers").write_text("cpu memory pids")


@pytest.fixture
def systemd(tmp_path: Path) -> FakeSystemd:
    make(tmp_path / "tree")
    return FakeSystemd(tmp_path / "tree", make=make)


@pytest.fixture
def cgroups(systemd: FakeSystemd, monkeypatch: pytest.MonkeyPatch) -> SystemdCgroups:
    found = SystemdCgroups(systemd.root, systemd)
    monkeypatch.setattr(folders, "make_folder", lambda folder: folder.exists() or make(folder))
    return found


def content(systemd: FakeSystemd, path: str, name: str) -> str:
    return (systemd.root / path.strip("/") / name).read_text()


def test_a_container_is_a_scope_with_its_limits_twice(systemd: FakeSystemd, cgroups: SystemdCgroups) -> None:
    assert cgroups.parent_path(PARENT) == POD
    assert cgroups.container_path(POD, "ab") == CONTAINER
    assert cgroups.needs_holder(CONTAINER)
    cgroups.create(CONTAINER, Resources(memory_limit=1000, cpu_shares=1024), holder=os.getpid())
    unit = systemd.units[units.scope_name("ab")]
    assert (unit["MemoryMax"], unit["CPUWeight"], unit["Slice"]) == (1000, 100, PARENT)
    assert content(systemd, CONTAINER, "memory.max") == "1000"
    assert content(systemd, f"{CONTAINER}/holder", "cgroup.procs") == str(os.getpid())
    cgroups.update(CONTAINER, Resources(memory_limit=2000))
    assert systemd.units[units.scope_name("ab")]["MemoryMax"] == 2000
    assert content(systemd, CONTAINER, "memory.max") == "2000"


def test_a_holder_is_not_among_the_processes(systemd: FakeSystemd, cgroups: SystemdCgroups) -> None:
    cgroups.create(CONTAINER, holder=os.getpid())
    folder = systemd.root / CONTAINER.strip("/")
    (folder / "cgroup.procs").write_text("1\n2\n")
    (folder / "pids.current").write_text("3\n")
    (folder.parent / "pids.current").write_text("4\n")
    assert cgroups.pids(CONTAINER) == [1, 2]
    assert cgroups.stats(CONTAINER).pids == 2
    assert cgroups.stats(POD).pids == 3


def test_a_scope_that_exists_is_refused_a_slice_is_changed(
    systemd: FakeSystemd, cgroups: SystemdCgroups
) -> None:
    cgroups.create(POD, Resources(pids_limit=10))
    cgroups.create(POD, Resources(pids_limit=20))
    assert systemd.units[PARENT]["TasksMax"] == 20
    assert content(systemd, POD, "pids.max") == "20"
    cgroups.create(CONTAINER, holder=os.getpid())
    with pytest.raises(Exists):
        cgroups.create(CONTAINER, holder=os.getpid())


def test_a_limit_that_makes_no_sense_starts_nothing(systemd: FakeSystemd, cgroups: SystemdCgroups) -> None:
    wrong = Resources(memory_limit=200, memory_swap_limit=100)
    with pytest.raises(InputError, match="memory_swap_limit_in_bytes"):
        cgroups.create(CONTAINER, wrong, holder=os.getpid())
    assert systemd.units == {}


def test_an_unit_that_systemd_has_elsewhere_is_an_error(systemd: FakeSystemd, tmp_path: Path) -> None:
    make(tmp_path / "namespaced")
    with pytest.raises(NotFound, match="started it elsewhere"):
        SystemdCgroups(tmp_path / "namespaced", systemd).create(POD)


@pytest.mark.parametrize("parent", ["/kubepods/pod1", "kubepods", "a--b.slice"])
def test_a_parent_that_is_no_slice_is_refused(cgroups: SystemdCgroups, parent: str) -> None:
    with pytest.raises(InputError, match="slice"):
        cgroups.check_parent(parent)


def test_a_pod_of_the_other_driver_keeps_its_groups(cgroups: SystemdCgroups) -> None:
    parent = cgroups.parent_path("/kubepods/pod1")
    assert parent == "/kubepods/pod1"
    assert cgroups.container_path(parent, "ab") == "/kubepods/pod1/ab"
    assert not cgroups.needs_holder("/kubepods/pod1/ab")


def test_a_pod_without_a_parent_is_the_system_s(cgroups: SystemdCgroups) -> None:
    assert cgroups.parent_path("") == "/system.slice"
    assert cgroups.reaper_path("/system.slice", "ab") == ""


def test_v1_and_an_old_systemd_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs cgroup2 alone"):
        SystemdCgroups(tmp_path, FakeSystemd(tmp_path))
    (tmp_path / "cgroup.controllers").touch()
    with pytest.raises(InputError, match=f"needs systemd {units.OLDEST}, this is 243"):
        SystemdCgroups(tmp_path, FakeSystemd(tmp_path, number=243))
