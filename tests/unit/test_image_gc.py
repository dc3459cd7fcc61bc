"""Which images and dead containers go, and when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from podkit import Node, Program, make_pod, running

from agent.pods.convert import ImageFact
from agent.pods.facts import ContainerFact, PodFacts, State
from agent.pods.garbage import beyond_limit, dispensable
from agent.pods.runtime import RuntimeFailure
from agent.resources.eviction.signals import Observation
from agent.resources.image_gc import (
    ImageCollector,
    ImagePolicy,
    ImageRecord,
    excess,
    outdated,
    remember,
    removable,
)
from host.clocks import FakeClock

POLICY = ImagePolicy(minimum_age=120.0, maximum_age=1000.0)


def record(name: str, **more: Any) -> ImageRecord:
    return ImageRecord(id=name, size=10, **more)


def names(records: Any) -> list[str]:
    return [each.id for each in records]


@pytest.mark.parametrize(
    ("available", "bytes_to_free"), [(160, 0), (159, 41), (150, 50), (0, 200), (5000, 0)]
)
def test_images_go_from_the_high_threshold_down_to_the_low_one(available: int, bytes_to_free: int) -> None:
    assert excess(Observation(available, 1000), POLICY) == bytes_to_free


def test_a_high_threshold_of_100_never_frees() -> None:
    assert excess(Observation(0, 1000), ImagePolicy(high=100)) == 0


def test_the_longest_unused_image_goes_first() -> None:
    found = [
        record("used-late", first_seen=0.0, last_used=900.0),
        record("used-early", first_seen=0.0, last_used=100.0),
        record("never-used-new", first_seen=700.0),
        record("never-used-old", first_seen=300.0),
        record("from-before"),
        record("in-use", first_seen=0.0, last_used=1000.0),
        record("too-new", first_seen=881.0),
        record("pinned", pinned=True),
    ]
    expected = ["from-before", "never-used-old", "never-used-new", "used-early", "used-late"]
    assert names(removable(found, POLICY, now=1000.0)) == expected


def test_an_image_unused_for_the_maximum_age_goes_once_we_have_watched_that_long() -> None:
    found = [record("stale", last_used=50.0), record("fresh", last_used=900.0), record("never")]
    assert outdated(found, POLICY, now=1000.0, began=0.0) == []
    assert names(outdated(found, POLICY, now=1060.0, began=0.0)) == ["never", "stale"]
    assert outdated(found, ImagePolicy(), now=9e9, began=0.0) == []


def test_what_is_remembered_of_images() -> None:
    images = [ImageFact(id="a", repo_tags=("x:1",), size=3), ImageFact(id="b", pinned=True)]
    first = remember({}, images, {"x:1"}, now=5.0, first=True)
    assert (first["a"].first_seen, first["a"].last_used, first["b"].pinned) == (None, 5.0, True)
    more = [*images, ImageFact(id="c")]
    second = remember(first, more, set(), now=9.0, first=False)
    assert (second["a"].last_used, second["c"].first_seen) == (5.0, 9.0)
    assert remember(second, [], set(), now=10.0, first=False) == {}


class FakeImages:
    def __init__(self, *names: str) -> None:
        self.held = {name: ImageFact(id=name, size=10) for name in names}
        self.on_remove: Any = None

    async def images(self) -> list[ImageFact]:
        return list(self.held.values())

    async def remove_image(self, ref: str) -> None:
        del self.held[ref]
        if self.on_remove:
            self.on_remove()


class Collecting:
    """A collector with the disk and the uses a test sets."""

    def __init__(self, *images: str, **policy: Any) -> None:
        self.clock, self.runtime = FakeClock(), FakeImages(*images)
        self.used: set[str] = set()
        self.said: list[str] = []
        self.pruned: list[tuple[set[str], float]] = []
        self.disk = Observation(500, 1000)
        self.collector = ImageCollector(
            ImagePolicy(**policy),
            clock=self.clock,
            runtime=self.runtime,
            failures=(RuntimeFailure,),
            used=lambda: self.used,
            disk=self._disk,
            say=lambda reason, text: self.said.append(f"{reason}: {text}"),
            prune=lambda known, since: self.pruned.append((set(known), since)),
        )

    async def _disk(self) -> Observation:
        return self.disk


async def test_no_more_images_go_than_needed() -> None:
    given = Collecting("a", "b", "c")
    await given.collector.collect()
    assert len(given.runtime.held) == 3
    given.disk = Observation(149, 1000)  # 51 above the low threshold, images of 10
    given.runtime.held["a"] = replace(given.runtime.held["a"], size=60)
    given.used = {"b"}
    await given.collector.collect()
    assert given.runtime.held.keys() == {"b", "c"}
    assert given.said == []


async def test_pull_records_hear_which_images_are_left() -> None:
    given = Collecting("a", "b")
    given.used = {"b"}
    given.disk = Observation(100, 1000)
    await given.collector.collect()
    assert given.pruned == [({"b"}, given.clock.now())]


async def test_too_little_freed_is_told_with_the_figures() -> None:
    given = Collecting("a")
    given.disk = Observation(100, 1000)
    await given.collector.collect()
    assert given.runtime.held == {}
    assert "FreeDiskSpaceFailed" in given.said[0]
    assert "free 100 bytes, but only found 10 bytes" in given.said[0]
    assert "In use are 900 of 1000 bytes, the threshold is 85%" in given.said[0]


async def test_an_image_that_a_pod_comes_for_meanwhile_stays() -> None:
    given = Collecting("a", "b")
    given.runtime.on_remove = lambda: given.used.add("b")
    await given.collector.delete_unused()
    assert given.runtime.held.keys() == {"b"}


# --- dead containers --------------------------------------------------------------------------------------


def dead(key: str, name: str, ended: float, attempt: int = 0) -> ContainerFact:
    return ContainerFact(id=key, name=name, attempt=attempt, state=State.EXITED, finished_at=ended)


RUNNING = ContainerFact(id="r", name="app", attempt=2, state=State.RUNNING)
GOING_ON = PodFacts(
    uid="u1",
    containers=(RUNNING, dead("a1", "app", 20.0, 1), dead("a0", "app", 10.0), dead("i0", "init", 1.0)),
)
OVER = PodFacts(uid="u2", containers=(dead("o0", "app", 15.0),))


def test_a_pod_that_goes_on_keeps_the_newest_run_of_each_container() -> None:
    assert names(dispensable(GOING_ON, over=False)) == ["a1", "a0"]
    assert names(dispensable(OVER, over=True)) == ["o0"]


@pytest.mark.parametrize(
    ("limit", "gone"), [(4, []), (3, ["a0"]), (2, ["a0", "o0"]), (0, ["a0", "o0", "a1"])]
)
def test_the_nodes_limit_takes_the_oldest(limit: int, gone: list[str]) -> None:
    found = beyond_limit([(GOING_ON, False), (OVER, True)], limit=limit, before=99.0)
    assert names(found) == gone


def test_a_container_that_ended_just_now_stays() -> None:
    assert names(beyond_limit([(GOING_ON, False)], limit=0, before=15.0)) == ["a0"]


async def test_what_is_removed_under_disk_pressure_takes_its_log_along(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.cri.programs["app"] = Program(lives=1.0)
    async with running(node, make_pod(spec={"restartPolicy": "Never"})):
        await node.advance(2.0)
        assert node.phase() == "Succeeded"
        log = Path(node.manager.log_path("default", "web", "app") or "")
        log.parent.mkdir(parents=True, exist_ok=True)
        kept = log.with_name("1.log")
        for path in (log, log.with_name(f"{log.name}.20260101-000000.gz"), kept):
            path.touch()
        before = node.state()
        await node.manager.garbage.delete_dead()
        await node.advance(1.0)
        assert node.cri.containers() == []
        assert list(log.parent.iterdir()) == [kept]
        assert (node.phase(), node.state()) == ("Succeeded", before)


async def test_images_of_containers_and_of_those_about_to_start_are_in_use(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with running(node, make_pod()):
        assert node.cri.images["busybox:latest"].id in node.manager.garbage.images_in_use()


@pytest.mark.parametrize(("keep", "left"), [(0, 1), (1, 2), (3, 4), (-1, 5)])
async def test_how_many_dead_containers_a_pod_keeps(tmp_path: Path, keep: int, left: int) -> None:
    node = Node(tmp_path, dead_per_container=keep)
    node.cri.programs["app"] = Program(lives=700.0, exit_code=1)
    async with running(node, make_pod()):
        for _ in range(4):
            await node.advance(702.0)
        assert len(node.cri.containers()) == left
