"""The eviction loop over a whole pods component with a fake runtime; the signals are the test's to set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from podkit import Node, Program, deleted, make_pod, running, settle

from agent.api.structs import Pod
from agent.resources.eviction.manager import EvictionManager, EvictionSettings
from agent.resources.eviction.measure import Reading
from agent.resources.eviction.rank import Disk, PodUsage
from agent.resources.eviction.signals import Amount, Disks, Observation, Threshold
from agent.server import exposition

MIB = 1 << 20
MEMORY = Threshold(signal="memory.available", value=Amount("100Mi"))
NODE_FS = Threshold(signal="nodefs.available", value=Amount("100Mi"))


class Machine:
    """A node whose signals and pods' uses are what the test says."""

    def __init__(self, node: Node, *thresholds: Threshold, **settings: Any) -> None:
        self.node = node
        self.available = {t.signal: 1000 for t in thresholds}
        """MiB of 1000."""
        self.uses: dict[str, PodUsage] = {}
        self.reclaimed: list[str] = []
        self.walks = 0
        self.walk_seconds = 0.0
        self.on_reclaim: dict[str, int] = {}
        self.said: list[str] = []
        self.changes: list[dict[str, str]] = []
        self.manager = EvictionManager(
            EvictionSettings(thresholds=thresholds, transition=60.0, **settings),
            clock=node.clock,
            read=self._read,
            usage=self._usage,
            pods=node.manager.ending,
            reclaim={name: lambda name=name: self._reclaim(name) for name in ("containers", "images")},
            say=lambda reason, text: self.said.append(f"{reason}: {text}"),
            on_change=lambda: self.changes.append(dict(self.manager.pressures)),
        )

    async def _read(self) -> Reading:
        seen = {name: Observation(left * MIB, 1000 * MIB) for name, left in self.available.items()}
        return Reading(seen, Disks())

    async def _usage(self, pods: Any, *, disk: bool) -> dict[str, PodUsage]:
        self.walks += disk
        await self.node.clock.sleep(self.walk_seconds)
        return {pod.metadata.uid: self.uses.get(pod.metadata.uid, PodUsage()) for pod in pods}

    async def _reclaim(self, what: str) -> None:
        self.reclaimed.append(what)
        self.available["nodefs.available"] += self.on_reclaim.get(what, 0)

    def reason(self, name: str) -> str:
        return self.node.pod(name).status.reason


def named(name: str, **spec: Any) -> Pod:
    return make_pod(metadata={"name": name, "uid": name}, spec=spec)


def limited(name: str) -> Pod:
    return named(name, volumes=[{"name": "v", "emptyDir": {"sizeLimit": "10Mi"}}])


@asynccontextmanager
async def at_work(machine: Machine, *pods: Pod) -> AsyncIterator[None]:
    async with running(machine.node, *pods):
        task = asyncio.create_task(machine.manager.run())
        await machine.node.settle()
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_memory_pressure_ends_the_largest_pod_and_passes(tmp_path: Path) -> None:
    node = Node(tmp_path)
    machine = Machine(node, MEMORY)
    machine.uses = {"big": PodUsage(memory=500 * MIB), "small": PodUsage(memory=5 * MIB)}
    node.cri.programs["app"] = Program(on_term=None)
    async with at_work(machine, named("small"), named("big")):
        assert machine.manager.pressures == {}
        machine.available["memory.available"] = 50
        await node.advance(10.5)
        assert machine.manager.pressures.keys() == {"MemoryPressure"}
        machine.available["memory.available"] = 550
        await node.advance(2.0)
        assert (machine.reason("big"), machine.reason("small")) == ("Evicted", "")
        assert node.pod("big").status.phase == "Failed"
        assert "available: 50Mi" in node.pod("big").status.message
        assert "DisruptionTarget" in [c.type for c in node.pod("big").status.conditions]
        assert node.events.message("Evicted") == node.pod("big").status.message
        assert machine.said == ["EvictionThresholdMet: Attempting to reclaim memory"]
        counted = exposition.values(machine.manager.families())
        assert counted == {'kubelet_evictions{eviction_signal="memory.available"}': 1}
        await node.advance(70.0)
        assert machine.manager.pressures == {}
        assert [found.keys() for found in machine.changes] == [{"MemoryPressure"}, set()]


async def test_the_next_pod_waits_until_the_last_one_is_gone(tmp_path: Path) -> None:
    node = Node(tmp_path)
    machine = Machine(node, MEMORY)
    node.cri.programs["app"] = Program(on_term=None)
    async with at_work(machine, named("a"), named("b")):
        machine.available["memory.available"] = 50
        await node.advance(10.5)
        assert node.events.reasons.count("Evicted") == 1
        assert {node.pod(name).status.phase for name in ("a", "b")} == {"Running"}  # it still runs
        await node.advance(1.0)
        assert node.events.reasons.count("Evicted") == 2
        assert sorted(machine.reason(name) for name in ("a", "b")) == ["", "Evicted"]


async def test_a_hard_threshold_leaves_a_pod_one_second(tmp_path: Path) -> None:
    node = Node(tmp_path)
    machine = Machine(node, MEMORY)
    node.cri.programs["app"] = Program(on_term=None)
    async with at_work(machine, named("a", terminationGracePeriodSeconds=600)):
        machine.available["memory.available"] = 50
        await node.advance(12.0)
        assert node.pod("a").status.container_statuses[0].state.terminated is not None


async def test_critical_pods_stay(tmp_path: Path) -> None:
    node = Node(tmp_path)
    machine = Machine(node, MEMORY)
    async with at_work(machine, named("a", priority=2_000_000_000)):
        machine.available["memory.available"] = 50
        await node.advance(40.0)
        assert node.pod("a").status.phase == "Running"
        assert len(machine.said) <= 5  # not once a second


async def test_disk_is_reclaimed_before_a_pod_goes(tmp_path: Path) -> None:
    node = Node(tmp_path)
    machine = Machine(node, NODE_FS)
    machine.on_reclaim = {"images": 500}
    async with at_work(machine, named("a")):
        machine.available["nodefs.available"] = 50
        await node.advance(10.0)
        assert machine.reclaimed == ["containers", "images"]
        assert node.pod("a").status.phase == "Running"
        assert machine.manager.pressures.keys() == {"DiskPressure"}


async def test_a_pod_goes_when_reclaiming_was_not_enough(tmp_path: Path) -> None:
    node = Node(tmp_path)
    machine = Machine(node, NODE_FS)
    machine.uses = {"a": PodUsage(volumes={"v": Disk(5)}), "b": PodUsage(volumes={"v": Disk(9)})}
    node.cri.programs["app"] = Program(on_term=None)
    async with at_work(machine, named("a"), named("b")):
        machine.available["nodefs.available"] = 50
        await node.advance(10.5)
        machine.available["nodefs.available"] = 500
        await node.advance(2.0)
        assert (machine.reason("a"), machine.reason("b")) == ("", "Evicted")


async def test_a_pod_above_its_own_limit_goes_without_any_pressure(tmp_path: Path) -> None:
    node = Node(tmp_path)
    machine = Machine(node, NODE_FS)
    async with at_work(machine, limited("a"), named("b")):
        machine.uses["a"] = PodUsage(volumes={"v": Disk(11 * MIB, 1)})
        await node.advance(12.0)
        assert machine.reason("a") == "Evicted"
        assert 'EmptyDir volume "v" exceeds the limit "10Mi"' in node.pod("a").status.message
        assert "DisruptionTarget" not in [c.type for c in node.pod("a").status.conditions]
        assert (machine.manager.pressures, node.pod("b").status.phase) == ({}, "Running")


async def test_a_slow_walk_is_repeated_less_often_and_pods_without_limits_are_not_walked(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path)
    machine = Machine(node, NODE_FS)
    async with at_work(machine, named("b")):
        await node.advance(60.0)
        assert machine.walks == 0
        machine.walk_seconds = 3.0
        await node.put(limited("a"))
        walks = []
        for seconds in (10.0, 55.0, 20.0):
            await node.advance(seconds)
            walks.append(machine.walks)
        assert walks == [1, 1, 2]  # the second one is due 60 s after the first began


async def test_local_storage_isolation_can_be_switched_off(tmp_path: Path) -> None:
    node = Node(tmp_path)
    machine = Machine(node, NODE_FS, local_storage=False)
    async with at_work(machine, limited("a")):
        machine.uses["a"] = PodUsage(volumes={"v": Disk(11 * MIB, 1)})
        await node.advance(60.0)
        assert (machine.walks, node.pod("a").status.phase) == (0, "Running")


async def test_a_deleted_pod_is_waited_for_as_well(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with running(node, named("a")):
        ending = node.manager.ending
        pod = node.pod("a")
        waiting = asyncio.create_task(ending.ended([pod], timeout=30.0))
        await settle()
        assert not waiting.done()
        await node.put(deleted(pod, grace=1))
        node.manager.remove(pod)
        await node.advance(2.0)
        assert await waiting
        assert await ending.ended([pod], timeout=30.0)  # nobody knows it any more
