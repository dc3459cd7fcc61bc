"""Names and properties of systemd's units, and which driver a machine gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from host.cgroups import units
from host.cgroups.driver import choose, load
from host.cgroups.files import Write
from host.cgroups.tree import Cgroups
from host.errors import InputError

UID = "0a1b2c3d-1111-2222-3333-444455556666"
POD = f"kubepods-burstable-pod{UID.replace('-', '_')}.slice"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("kubepods.slice", "/kubepods.slice"),
        (POD, f"/kubepods.slice/kubepods-burstable.slice/{POD}"),
        (
            f"/kubepods.slice/kubepods-burstable.slice/{POD}",
            f"/kubepods.slice/kubepods-burstable.slice/{POD}",
        ),
        (f"/{POD}", f"/kubepods.slice/kubepods-burstable.slice/{POD}"),
        ("-.slice", ""),
    ],
)
def test_dashes_of_a_slice_nest(name: str, path: str) -> None:
    assert units.expand_slice(name) == path


@pytest.mark.parametrize(
    "name",
    [
        *("a--b.slice", "-a.slice", "a-.slice", ".slice", "a b.slice", "a.service", "a.slice/"),
        *("../a.slice", "b.slice/a.slice", "a" * 256 + ".slice", "a\n.slice"),
    ],
)
def test_what_is_no_slice_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="slice"):
        units.expand_slice(name)


def test_names_nest_as_kubelet_nests_them() -> None:
    path = units.slice_path(["kubepods", "burstable", f"pod{UID}"])
    assert path == f"/kubepods.slice/kubepods-burstable.slice/{POD}"
    assert units.unit_of(path) == POD
    assert units.slice_path(["lab-1", "kubepods"]) == "/lab_1.slice/lab_1-kubepods.slice"
    assert units.slice_path([]) == ""
    with pytest.raises(InputError):
        units.slice_path(["kubepods", "pod/x"])


def test_a_path_tells_its_unit_and_slice() -> None:
    scope = f"/kubepods.slice/{units.scope_name('ab')}"
    assert units.unit_of(scope) == "cri-nodelet-ab.scope"
    assert units.slice_of(scope) == "kubepods.slice"
    assert units.slice_of("/cri-nodelet-ab.scope") == "-.slice"
    assert units.unit_of("/kubepods/pod1/ab") == ""


def values(found: list[units.Property]) -> dict[str, object]:
    return {name: value for name, (_, value) in found}


def test_files_say_what_properties_say() -> None:
    writes = [
        Write("cpu.weight", "59"),
        Write("cpu.max", "50000 100000"),
        Write("cpuset.cpus", "0-2,8"),
        Write("cpuset.mems", "0"),
        Write("memory.max", str(64 << 20)),
        Write("memory.swap.max", "0"),
        Write("memory.high", "max"),
        Write("pids.max", "max"),
        Write("hugetlb.2MB.max", "0"),
        Write("misc.max", "res_a 1"),
    ]
    assert values(units.limits(writes, version=252, scope=True)) == {
        "CPUWeight": 59,
        "CPUQuotaPerSecUSec": 500_000,
        "CPUQuotaPeriodUSec": 100_000,
        "AllowedCPUs": b"\x07\x01",
        "AllowedMemoryNodes": b"\x01",
        "MemoryMax": 64 << 20,
        "MemorySwapMax": 0,
        "MemoryHigh": units.INFINITY,
        "TasksMax": units.INFINITY,
    }


@pytest.mark.parametrize(
    ("line", "a_second", "period"),
    [
        ("max 100000", units.INFINITY, 100_000),
        ("12345 100000", 130_000, 100_000),
        ("1000 100000", 10_000, 100_000),
        ("250000 50000", 5_000_000, 50_000),
        ("max", units.INFINITY, 100_000),
    ],
)
def test_a_quota_is_never_rounded_down(line: str, a_second: int, period: int) -> None:
    found = values(units.limits([Write("cpu.max", line)], version=252, scope=True))
    assert found == {"CPUQuotaPerSecUSec": a_second, "CPUQuotaPeriodUSec": period}


def test_a_later_write_wins_as_in_the_files() -> None:
    writes = [Write("memory.max", "100"), Write("memory.max", "200")]
    assert values(units.limits(writes, version=252, scope=True)) == {"MemoryMax": 200}


@pytest.mark.parametrize(
    ("version", "scope", "found"),
    [(252, True, {}), (253, True, {"OOMPolicy": "kill"}), (257, False, {})],
)
def test_the_whole_group_is_killed_where_systemd_has_a_word_for_it(
    version: int, scope: bool, found: dict[str, str]
) -> None:
    writes = [Write("memory.oom.group", "1")]
    assert values(units.limits(writes, version=version, scope=scope)) == found


@pytest.mark.parametrize("name", ["memory.high", "pids.max", "cpu.max"])
def test_a_value_that_is_no_number_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="neither a number nor max"):
        units.limits([Write(name, "much")], version=252, scope=True)


@pytest.mark.parametrize("numbers", ["x", "1-", "-1", "1-x", "0-99999999999"])
def test_a_list_of_cpus_that_is_none_is_refused(numbers: str) -> None:
    with pytest.raises(InputError, match="is not a list"):
        units.bitmask(numbers)


def test_a_scope_is_delegated_and_has_no_limit_of_systemds() -> None:
    path = f"/kubepods.slice/{units.scope_name('ab')}"
    found = values(units.new_scope(path, holder=7, limits=[("MemoryMax", ("t", 5))]))
    assert found["PIDs"] == [7]
    assert found["Slice"] == "kubepods.slice"
    assert (found["Delegate"], found["DefaultDependencies"], found["MemoryMax"]) == (True, False, 5)
    assert found["TasksMax"] == units.INFINITY
    limited = values(units.new_scope(path, holder=7, limits=[("TasksMax", ("t", 9))]))
    assert limited["TasksMax"] == 9


@pytest.mark.parametrize(
    ("setting", "mode", "runs", "driver"),
    [
        ("auto", "v2", True, "systemd"),
        ("auto", "v2", False, "cgroupfs"),
        ("auto", "hybrid", True, "cgroupfs"),
        ("auto", "v1", True, "cgroupfs"),
        ("cgroupfs", "v2", True, "cgroupfs"),
        ("systemd", "v1", False, "systemd"),
    ],
)
def test_auto_is_systemd_where_it_alone_writes_the_tree(
    setting: str, mode: str, runs: bool, driver: str
) -> None:
    assert choose(setting, mode=mode, systemd_runs=runs) == driver  # type: ignore[arg-type]


def test_without_systemd_no_bus_is_asked(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    found = load("auto", tmp_path, booted=tmp_path / "none")
    assert type(found) is Cgroups
    assert found.driver == "cgroupfs"
