"""The node's share of resources: what pods may use together, swap, the signals as read, sizes on disk."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from fake_systemd import FakeSystemd
from podkit import FakeCgroups, make_pod

from agent.node.facts import Machine
from agent.resources.cgroup_driver import PAUSE_S, agree
from agent.resources.eviction.measure import RuntimePlaces, SignalReader
from agent.resources.eviction.signals import Disks, Observation
from agent.resources.node_allocatable import pods_limits, reserved_limits
from agent.resources.pod_cgroups import PodCgroups, pod_resources
from agent.resources.swap import SwapLimit, SwapPolicy, swap_limit
from host.cgroups import Cgroups, CgroupStats, Resources
from host.cgroups.systemd import SystemdCgroups
from host.clocks import FakeClock
from host.diskusage import disk_usage

MIB, GIB = 1 << 20, 1 << 30
MACHINE = Machine(
    machine_id="",
    system_uuid="",
    boot_id="",
    kernel_version="",
    os_image="",
    architecture="",
    cpus=4,
    memory=8 * GIB,
    hugepages={"hugepages-2Mi": 4 * MIB},
    pids=32768,
)


def test_all_pods_may_use_what_is_not_reserved() -> None:
    reserved = ({"cpu": "500m", "memory": "1Gi", "pid": "1000"}, {"cpu": "0.5", "memory": "1Gi"})
    found = pods_limits(MACHINE, reserved)
    assert (found.cpu_shares, found.memory_limit, found.pids_limit) == (3 * 1024, 6 * GIB, 31768)
    assert found.hugepage_limits == {"2MB": 4 * MIB}


def test_a_reserved_cgroup_may_use_what_is_reserved_for_it() -> None:
    found = reserved_limits({"cpu": "500m", "memory": "1Gi", "pid": "100"})
    assert found == Resources(cpu_shares=512, memory_limit=GIB, pids_limit=100)
    assert reserved_limits({}) == Resources()


def test_the_limit_of_all_pods_is_on_the_cgroup_above_them() -> None:
    cgroups, limits = FakeCgroups(), Resources(memory_limit=GIB)
    PodCgroups(cgroups=cgroups, root="/n", all_pods=limits).ensure_levels()
    assert cgroups.paths["/n/kubepods"] == limits
    assert cgroups.paths["/n/kubepods/besteffort"] == Resources(cpu_shares=2)


def test_huge_pages_of_a_pod() -> None:
    resources = {"limits": {"hugepages-2Mi": "8Mi", "memory": "1Gi", "cpu": "1"}}
    pod = make_pod(spec={"containers": [{"name": "c", "image": "x", "resources": resources}]})
    assert pod_resources(pod).hugepage_limits == {"2MB": 8 * MIB}


# --- swap -------------------------------------------------------------------------------------------------

LIMITED = SwapPolicy(limited=True, accounting="v2", total=2 * GIB, memory=8 * GIB)


def swap_of(policy: SwapPolicy, *, priority: int = 0, **resources: Any) -> SwapLimit:
    containers = [{"name": "c", "image": "x", "resources": resources}]
    pod = make_pod(spec={"containers": containers, "priority": priority})
    return swap_limit(pod, pod.spec.containers[0], policy)


@pytest.mark.parametrize(
    ("resources", "more", "share"),
    [
        ({"requests": {"memory": "1Gi"}}, {}, GIB // 4),
        ({"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}}, {}, GIB // 4),
        ({"requests": {"memory": "1Gi"}, "limits": {"memory": "1Gi"}}, {}, 0),
        ({"requests": {"memory": "1Gi"}}, {"priority": 2_000_000_000}, 0),
        ({"requests": {"cpu": "1"}}, {}, 0),
        ({}, {}, 0),
    ],
)
def test_limited_swap_is_a_burstable_containers_share(
    resources: dict[str, Any], more: dict[str, Any], share: int
) -> None:
    found = swap_of(LIMITED, **more, **resources)
    assert found == SwapLimit(unified={"memory.swap.max": str(share)})


def test_no_swap() -> None:
    asked = {"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}}
    none = dataclasses.replace(LIMITED, limited=False)
    assert swap_of(none, **asked).unified == {"memory.swap.max": "0"}
    assert swap_of(SwapPolicy(accounting="v1"), **asked) == SwapLimit(memory_and_swap=2 * GIB)
    assert swap_of(SwapPolicy(accounting="v1")) == swap_of(SwapPolicy()) == SwapLimit()


# --- signals ----------------------------------------------------------------------------------------------


class Limited(Cgroups):
    """Cgroups whose figures a test sets."""

    def __init__(self, tmp_path: Path, **found: CgroupStats) -> None:
        super().__init__(tmp_path)
        self.found = found

    def stats(self, path: str) -> CgroupStats:
        return self.found.get(path.strip("/").replace("/", "_"), CgroupStats())


def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "sys/kernel").mkdir(parents=True)
    text = "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 700 kB\nInactive(file): 250 kB\n"
    (folder / "meminfo").write_text(text)
    (folder / "loadavg").write_text("0 0 0 2/300 9\n")
    (folder / "sys/kernel/pid_max").write_text("4000\n")
    (folder / "sys/kernel/threads-max").write_text("9000\n")
    return folder


async def observe(
    tmp_path: Path, cgroups: Cgroups, root: str = "/", places: Any = None, pods: str = ""
) -> Any:
    async def ask() -> RuntimePlaces | None:
        return places

    return await SignalReader(
        root=tmp_path,
        cgroups=cgroups,
        cgroup_root=root,
        pods_cgroup=pods,
        places=ask,
        proc=proc(tmp_path),
    ).read()


async def test_memory_is_available_when_it_is_free_or_cache_that_nobody_touches(tmp_path: Path) -> None:
    reading = await observe(tmp_path, Limited(tmp_path))
    assert reading.seen["memory.available"] == Observation(350 * 1024, 1000 * 1024)
    assert reading.seen["pid.available"] == Observation(3700, 4000)
    assert "imagefs.available" not in reading.seen
    assert 0 < reading.seen["nodefs.available"].available <= reading.seen["nodefs.available"].capacity


async def test_a_node_in_a_limited_cgroup_has_that_memory(tmp_path: Path) -> None:
    figures = CgroupStats(memory_limit=600 * 1024, memory_working_set=200 * 1024)
    pods = CgroupStats(memory_limit=500 * 1024, memory_working_set=150 * 1024)
    cgroups = Limited(tmp_path, n=figures, n_kubepods=pods)
    reading = await observe(tmp_path, cgroups, "/n", pods="/n/kubepods")
    assert reading.seen["memory.available"] == Observation(400 * 1024, 600 * 1024)
    assert reading.seen["allocatableMemory.available"] == Observation(350 * 1024, 500 * 1024)


async def test_a_limit_above_the_machines_memory_is_none(tmp_path: Path) -> None:
    reading = await observe(tmp_path, Limited(tmp_path, n=CgroupStats(memory_limit=1 << 50)), "/n")
    assert reading.seen["memory.available"].capacity == 1000 * 1024


async def test_which_disks_there_are(tmp_path: Path) -> None:
    same = await observe(tmp_path, Limited(tmp_path), places=RuntimePlaces(str(tmp_path), str(tmp_path)))
    assert same.disks == Disks()
    assert same.seen["imagefs.available"].capacity == same.seen["nodefs.available"].capacity
    other = "/dev/shm"
    own = await observe(tmp_path / "b", Limited(tmp_path), places=RuntimePlaces(other, other))
    assert own.disks == Disks(images=True)


async def test_a_folder_of_the_runtime_that_is_away_leaves_its_signals_out(tmp_path: Path) -> None:
    reading = await observe(tmp_path, Limited(tmp_path), places=RuntimePlaces(str(tmp_path / "none")))
    assert not any(name.startswith(("imagefs", "containerfs")) for name in reading.seen)
    assert reading.disks == Disks()


# --- sizes on disk ----------------------------------------------------------------------------------------


def test_disk_usage_counts_files_once_and_follows_nothing(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * (4 * MIB))
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/file").write_bytes(b"x" * MIB)
    os.link(tree / "a/b/file", tree / "again")
    (tree / "link").symlink_to(outside)
    (tree / "up").symlink_to(tmp_path)
    used, inodes = disk_usage(tree)
    assert MIB <= used < 2 * MIB
    assert inodes == 5  # a, b, the file under one of its names, two links


def test_disk_usage_of_what_is_missing_or_too_deep(tmp_path: Path) -> None:
    assert disk_usage(tmp_path / "none") == (0, 0)
    folder = tmp_path
    for _ in range(200):
        folder = folder / "d"
    folder.mkdir(parents=True)
    assert disk_usage(tmp_path)[1] == 129


class Answers:
    """A runtime that says one thing after another."""

    def __init__(self, *said: str | Exception) -> None:
        self.left = list(said)

    async def __call__(self) -> str:
        word = self.left.pop(0)
        if isinstance(word, Exception):
            raise word
        return word


@pytest.mark.parametrize(
    ("said", "configured", "driver"),
    [("systemd", "cgroupfs", "systemd"), ("cgroupfs", "systemd", "cgroupfs"), ("", "systemd", "systemd")],
)
async def test_the_runtimes_cgroup_driver_counts(said: str, configured: str, driver: str) -> None:
    found = await agree(Answers(said), configured=configured, failures=(OSError,), clock=FakeClock())
    assert found == driver


async def test_a_runtime_that_does_not_answer_yet_is_asked_again() -> None:
    clock, answers = FakeClock(), Answers(OSError("no socket"), OSError("no socket"), "systemd")
    asking = asyncio.create_task(agree(answers, configured="cgroupfs", failures=(OSError,), clock=clock))
    for _ in range(2):
        await asyncio.sleep(0)
        await clock.advance(PAUSE_S)
    assert await asking == "systemd"


async def test_with_systemd_pods_are_in_slices(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    cgroups = PodCgroups(cgroups=SystemdCgroups(tmp_path, FakeSystemd(tmp_path)), root="/lab-1")
    pod = make_pod(metadata={"uid": "12-34"}, spec={"containers": [{"name": "a", "image": "i"}]})
    unit = "lab_1-kubepods-besteffort-pod12_34.slice"
    top = "/lab_1.slice/lab_1-kubepods.slice/lab_1-kubepods-besteffort.slice"
    assert cgroups.path(pod) == f"{top}/{unit}"
    assert cgroups.parent(pod) == unit
