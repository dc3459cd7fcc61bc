"""Controllers as pure plans, and whole trees in temporary folders that look like v1, hybrid and v2 mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from host.cgroups import (
    Cgroups,
    DeviceRule,
    Resources,
    cpu,
    cpuset,
    devices,
    hugetlb,
    io,
    memory,
    pids,
    pressure,
    unified,
)
from host.cgroups.files import Read, Write, keyed, number
from host.cgroups.model import DeviceIo, Stall
from host.errors import Busy, HostError, InputError


def files(**content: str) -> Read:
    """A cgroup folder in memory; double underscores stand for dots."""
    return lambda name: content.get(name.replace(".", "__"), "")


EMPTY = files()


@pytest.mark.parametrize(
    ("shares", "weight"), [(0, 1), (2, 1), (102, 17), (512, 59), (1024, 100), (2048, 174), (262144, 10000)]
)
def test_shares_become_weights_on_runcs_curve(shares: int, weight: int) -> None:
    assert cpu.weight(shares) == weight


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (Resources(), []),
        (Resources(cpu_shares=100), [("cpu.shares", "100")]),
        (Resources(cpu_shares=0), [("cpu.shares", "2")]),
        (
            Resources(cpu_quota_us=5000, cpu_period_us=10000),
            [("cpu.cfs_period_us", "10000"), ("cpu.cfs_quota_us", "5000")],
        ),
        (Resources(cpu_quota_us=-1), [("cpu.cfs_quota_us", "-1")]),
        (Resources(cpu_quota_us=0), [("cpu.cfs_quota_us", "-1")]),
    ],
)
def test_cpu_v1(resources: Resources, expected: list[tuple[str, str]]) -> None:
    assert [(write.name, write.value) for write in cpu.plan_v1(resources, EMPTY)] == expected


@pytest.mark.parametrize(
    ("resources", "present", "expected"),
    [
        (Resources(), "", []),
        (Resources(cpu_quota_us=5000), "", ["5000 100000"]),
        (Resources(cpu_quota_us=5000), "max 20000", ["5000 20000"]),
        (Resources(cpu_period_us=50000), "5000 20000", ["5000 50000"]),
        (Resources(cpu_quota_us=-1), "5000 20000", ["max 20000"]),
    ],
)
def test_cpu_max_keeps_the_half_not_asked_for(
    resources: Resources, present: str, expected: list[str]
) -> None:
    assert [write.value for write in cpu.plan_v2(resources, files(cpu__max=present))] == expected


def test_memory_v1_raises_the_sum_first_and_lowers_it_last() -> None:
    present = files(memory__memsw__limit_in_bytes="1000")
    raised = memory.plan_v1(Resources(memory_limit=2000, memory_swap_limit=2000), present)
    lowered = memory.plan_v1(Resources(memory_limit=500, memory_swap_limit=500), present)
    assert [write.name for write in raised] == ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]
    assert [write.name for write in lowered] == ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]


def test_memory_v2_counts_swap_alone() -> None:
    wanted = Resources(memory_limit=100, memory_swap_limit=150, memory_min=10, memory_high=90, oom_group=True)
    assert [(write.name, write.value) for write in memory.plan_v2(wanted, EMPTY)] == [
        ("memory.max", "100"),
        ("memory.swap.max", "50"),
        ("memory.min", "10"),
        ("memory.high", "90"),
        ("memory.oom.group", "1"),
    ]
    lifted = memory.plan_v2(Resources(memory_limit=-1, memory_swap_limit=-1), EMPTY)
    assert [write.value for write in lifted] == ["max", "max"]


def test_memory_v1_says_what_the_kernel_would_call_an_invalid_argument() -> None:
    present = files(memory__memsw__limit_in_bytes="1000")
    with pytest.raises(
        InputError, match=r"memory_limit_in_bytes 2000 is above .* 1000: give memory_swap_lim"
    ):
        memory.plan_v1(Resources(memory_limit=2000), present)
    assert memory.plan_v1(Resources(memory_limit=900), present) == [Write("memory.limit_in_bytes", "900")]


@pytest.mark.parametrize(
    ("resources", "present", "expected"),
    [
        (Resources(memory_swap_limit=150), "100", "50"),
        (Resources(memory_swap_limit=150, memory_limit=150), "100", "0"),
        (Resources(memory_swap_limit=-1), "max", "max"),
    ],
)
def test_memory_v2_swap_counts_from_the_limit_in_force(
    resources: Resources, present: str, expected: str
) -> None:
    writes = memory.plan_v2(resources, files(memory__max=present))
    assert writes[-1] == Write("memory.swap.max", expected, optional=True)


def test_memory_v2_swap_without_a_limit_is_refused() -> None:
    with pytest.raises(InputError, match=r"memory_swap_limit_in_bytes 150 .* \(in force: none\)"):
        memory.plan_v2(Resources(memory_swap_limit=150), files(memory__max="max"))
    for limit in (-1, 200):
        with pytest.raises(InputError, match="memory_swap_limit_in_bytes 150"):
            memory.check(Resources(memory_swap_limit=150, memory_limit=limit))


def test_memory_v2_is_not_lowered_below_what_cannot_be_reclaimed() -> None:
    used = files(memory__current="1000", memory__stat="active_file 300\ninactive_file 200\nshmem 100")
    with pytest.raises(Busy, match=r"memory limit 499: .*: 500 bytes are in use"):
        memory.plan_v2(Resources(memory_limit=499), used)
    assert memory.plan_v2(Resources(memory_limit=500), used) == [Write("memory.max", "500")]


def test_working_set_leaves_the_idle_page_cache_out() -> None:
    v1 = memory.stats_v1(
        files(memory__usage_in_bytes="1000", memory__stat="total_inactive_file 300\ntotal_rss 5")
    )
    v2 = memory.stats_v2(files(memory__current="1000", memory__stat="inactive_file 1200", memory__max="max"))
    assert (v1["memory_working_set"], v1["memory_rss"]) == (700, 5)
    assert (v2["memory_working_set"], v2["memory_limit"]) == (0, 0)


def test_io_is_counted_by_device_in_both_versions() -> None:
    expected = (
        DeviceIo(major=8, minor=0, read_bytes=1, written_bytes=2, reads=3, writes=4),
        DeviceIo(major=253, minor=1, written_bytes=9),
    )
    text = "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:1 wbytes=9\nodd\n"
    assert io.stats_v2(files(io__stat=text)) == {"io": expected}
    moved = "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\n253:1 Write 9\nTotal 12"
    done = "8:0 Read 3\n8:0 Write 4\nTotal 7"
    v1 = {
        "blkio__throttle__io_service_bytes_recursive": moved,
        "blkio__throttle__io_serviced_recursive": done,
    }
    assert io.stats_v1(files(**v1)) == {"io": expected}
    assert io.stats_v1(EMPTY) == io.stats_v2(EMPTY) == {"io": ()}


def test_pressure_is_read_with_and_without_the_full_line() -> None:
    some = "some avg10=1.50 avg60=0.25 avg300=0.00 total=123"
    found = pressure.parse(f"{some}\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=7")
    assert found is not None
    assert found.some == Stall(avg10=1.5, avg60=0.25, avg300=0.0, total_us=123)
    assert found.full == Stall(avg10=0.5, total_us=7)
    alone = pressure.parse(some)
    assert alone is not None
    assert alone.full == Stall()
    assert pressure.parse("") is pressure.parse("some avg10=1") is None


def test_the_swap_limit_is_of_swap_alone() -> None:
    v1 = {"memory__limit_in_bytes": "100", "memory__memsw__limit_in_bytes": "150"}
    assert memory.stats_v1(files(**v1))["swap_limit"] == 50
    assert memory.stats_v2(files(memory__swap__max="0"))["swap_limit"] == 0
    assert memory.stats_v2(files(memory__swap__max="max"))["swap_limit"] is None
    assert memory.stats_v1(EMPTY)["swap_limit"] is None


def test_hybrid_reads_pressure_from_its_cgroup2_tree(tmp_path: Path) -> None:
    groups = Cgroups(v1_root(tmp_path, "cpuset", "memory", unified=True))
    for name in ("unified", "memory"):
        (tmp_path / name / "a").mkdir()
    (tmp_path / "memory/a/memory.usage_in_bytes").write_text("5")
    (tmp_path / "unified/a/memory.pressure").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=9")
    stats = groups.stats("/a")
    assert stats.memory_usage == 5
    assert stats.memory_pressure is not None
    assert (stats.memory_pressure.some.total_us, stats.cpu_pressure) == (9, None)


def test_oom_kills_are_read_from_both_versions() -> None:
    assert memory.oom_kills_v1(files(memory__oom_control="under_oom 0\noom_kill 3")) == 3
    assert memory.oom_kills_v2(files(memory__events="low 0\noom 1\noom_kill 2")) == 2
    assert memory.oom_kills_v1(EMPTY) == 0


@pytest.mark.parametrize(("limit", "text"), [(5, "5"), (0, "max"), (-1, "max")])
def test_pids(limit: int, text: str) -> None:
    assert pids.plan_v1(Resources(pids_limit=limit), EMPTY) == [Write("pids.max", text)]


def test_devices_deny_before_they_allow() -> None:
    rules = (DeviceRule(kind="c", major=1, minor=3, access="rw"), DeviceRule(kind="b", access="m"))
    assert [(write.name, write.value) for write in devices.plan_v1(Resources(devices=rules), EMPTY)] == [
        ("devices.deny", "a"),
        ("devices.allow", "c 1:3 rw"),
        ("devices.allow", "b *:* m"),
    ]
    assert devices.plan_v1(Resources(), EMPTY) == []
    assert devices.plan_v2(Resources(devices=rules), EMPTY) == []
    assert devices.plan_v1(Resources(devices=devices.ALL_DEVICES), EMPTY)[-1].value == "a"


def test_cpuset_fill_in_copies_only_what_is_empty() -> None:
    parent = files(cpuset__cpus="0-3", cpuset__mems="0")
    assert cpuset.plan_fill_in(parent, files(cpuset__cpus="1")) == [Write("cpuset.mems", "0")]
    assert cpuset.plan_v1(Resources(cpuset_cpus="1"), EMPTY) == [Write("cpuset.cpus", "1")]


def test_huge_pages_of_unknown_size_are_passed_over() -> None:
    wanted = Resources(hugepage_limits={"2MB": 4096})
    assert hugetlb.plan_v2(wanted, EMPTY) == [
        Write("hugetlb.2MB.max", "4096", optional=True),
        Write("hugetlb.2MB.rsvd.max", "4096", optional=True),
    ]
    assert [write.name for write in hugetlb.plan_v1(wanted, EMPTY)] == [
        "hugetlb.2MB.limit_in_bytes",
        "hugetlb.2MB.rsvd.limit_in_bytes",
    ]


@pytest.mark.parametrize("size", ["", "2", "0MB", "2MB/../x", "2 MB"])
def test_what_is_no_page_size_is_refused(size: str) -> None:
    with pytest.raises(InputError, match="page_size"):
        hugetlb.check(Resources(hugepage_limits={size: 1}))


def test_unified_is_one_write_a_line() -> None:
    wanted = Resources(unified={"memory.high": "5", "io.max": "8:0 rbps=1\n8:16 wbps=2", "cpu.idle": "1"})
    unified.check(wanted)
    assert [(write.name, write.value) for write in unified.plan_v2(wanted, EMPTY)] == [
        ("memory.high", "5"),
        ("io.max", "8:0 rbps=1"),
        ("io.max", "8:16 wbps=2"),
        ("cpu.idle", "1"),
    ]


@pytest.mark.parametrize("name", ["", "cgroup.procs", "memory", "../memory.high", "memory.high/..", "a.b"])
def test_unified_names_are_controllers_files(name: str) -> None:
    with pytest.raises(InputError, match="unified key"):
        unified.check(Resources(unified={name: "1"}))


def test_numbers() -> None:
    assert number("9223372036854771712") == number("max") == number("") == 0
    assert keyed("a 1\nb x\nc 2 3\n\nd 4") == {"a": 1, "d": 4}


def v1_root(root: Path, *controllers: str, unified: bool = False) -> Path:
    for name in controllers:
        (root / name).mkdir()
        (root / name / "cgroup.procs").write_text("")
    (root / "cpuset/cpuset.cpus").write_text("0-1")
    (root / "cpuset/cpuset.mems").write_text("0")
    if unified:
        (root / "unified").mkdir()
        for name in ("cgroup.procs", "cgroup.controllers"):
            (root / "unified" / name).write_text("")
    return root


def v2_root(root: Path) -> Path:
    (root / "cgroup.procs").write_text("")
    (root / "cgroup.controllers").write_text("cpu io memory pids\n")
    (root / "cgroup.subtree_control").write_text("cpu\n")
    return root


def test_kinds_of_mount_are_recognised(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    v1 = Cgroups(v1_root(tmp_path / "one", "cpu,cpuacct", "cpuset", "memory"))
    hybrid = Cgroups(v1_root(tmp_path / "two", "cpuset", "memory", unified=True))
    v2 = Cgroups(v2_root(tmp_path / "three"))
    assert (v1.mode, hybrid.mode, v2.mode) == ("v1", "hybrid", "v2")
    assert v1.controllers == {"cpu", "cpuacct", "cpuset", "memory"}
    assert hybrid.trees[0].name == "unified"
    assert v2.controllers == {"cpu", "io", "memory", "pids"}
    assert v2.oom_file("/a/b") == tmp_path / "three/a/b/memory.events"
    assert hybrid.oom_file("/a/b") == tmp_path / "two/memory/a/b/memory.oom_control"
    assert v1.kill_file("/a") is None
    assert hybrid.kill_file("/a") == tmp_path / "two/unified/a/cgroup.kill"


def test_links_between_v1_mounts_are_not_counted_twice(tmp_path: Path) -> None:
    v1_root(tmp_path, "cpu,cpuacct", "cpuset")
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    assert [tree.name for tree in Cgroups(tmp_path).trees] == ["cpu,cpuacct", "cpuset"]


@pytest.mark.parametrize("path", ["", "/", "/..", "/a/../b", "/a/./b", "a\0b"])
def test_paths_stay_below_the_mount(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match="cgroup path"):
        Cgroups(v2_root(tmp_path)).folders(path)


def test_v2_hands_controllers_down_level_by_level(tmp_path: Path) -> None:
    (tmp_path / "kube").mkdir()
    (tmp_path / "kube/cgroup.controllers").write_text("cpu memory")
    (tmp_path / "kube/cgroup.subtree_control").write_text("")
    Cgroups(v2_root(tmp_path)).create("/kube/pod")
    assert (tmp_path / "cgroup.subtree_control").read_text().startswith("+io +memory +pids")
    assert (tmp_path / "kube/cgroup.subtree_control").read_text() == "+cpu +memory"
    assert (tmp_path / "kube/pod").is_dir()


def test_update_names_the_file_that_refused(tmp_path: Path) -> None:
    groups = Cgroups(v2_root(tmp_path))
    (tmp_path / "a").mkdir()
    with pytest.raises(HostError, match=r"write '7' to .*/a/pids\.max: no such file"):
        groups.update("/a", Resources(pids_limit=7))
    (tmp_path / "a/pids.max").write_text("")
    groups.update("/a", Resources(pids_limit=7))
    assert (tmp_path / "a/pids.max").read_text() == "7"


def test_unified_is_written_last_on_v2_and_refused_on_v1(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    wanted = Resources(pids_limit=7, unified={"pids.max": "9"})
    with pytest.raises(InputError, match="unified resources need cgroup v2"):
        Cgroups(v1_root(tmp_path / "one", "cpuset", "pids")).create("/a", wanted)
    assert not (tmp_path / "one/pids/a").exists()
    groups = Cgroups(v2_root(tmp_path / "two"))
    (tmp_path / "two/a").mkdir()
    (tmp_path / "two/a/pids.max").write_text("")
    groups.update("/a", wanted)
    assert (tmp_path / "two/a/pids.max").read_text() == "9"


def test_missing_groups_are_empty_and_removed_already(tmp_path: Path) -> None:
    groups = Cgroups(v2_root(tmp_path))
    assert not groups.exists("/x")
    assert groups.pids("/x") == []
    assert groups.stats("/x").memory_usage == 0
    groups.kill("/x")
    groups.remove("/x")
    (tmp_path / "x/y/z").mkdir(parents=True)
    groups.remove("/x")
    assert not groups.exists("/x")
