"""Pods live on under an agent that starts while the API is away; when it is back it is right."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from podkit import FakeCri, Node, deleted, make_pod, running

from agent.api.structs import PodStatus, Service
from agent.pods import checkpoint
from agent.pods.facts import State
from agent.pods.runtime import ExecResult

PROBE = {"exec": {"command": ["cat", "/ok"]}, "periodSeconds": 5, "failureThreshold": 1}
WEB = msgspec.convert(
    {
        "metadata": {"name": "web", "namespace": "default", "uid": "s1"},
        "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]},
    },
    Service,
)


@asynccontextmanager
async def without_api(before: Node, root: Path) -> AsyncIterator[Node]:
    """A new agent on the same machine, which no API has told anything."""
    node = Node(root, cri=before.cri, clock=before.clock)
    node.services = None
    task = asyncio.create_task(node.manager.run())
    await node.settle()
    await node.advance(5)
    try:
        yield node
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def left(node: Node, *uids: str) -> None:
    """Return when these pods alone are left on the node; what ends the others works in threads too."""
    async with asyncio.timeout(30):
        while {w.uid for w in node.manager.workers()} != set(uids):
            await node.advance(1)
            await asyncio.sleep(0.01)


def alive(cri: FakeCri) -> list[str]:
    return [c.id for c in cri.containers() if c.state is State.RUNNING]


def test_a_pod_comes_back_whole_and_for_the_owner_alone(tmp_path: Path) -> None:
    pod = make_pod(
        spec={
            "containers": [
                {"name": "app", "image": "busybox", "livenessProbe": PROBE, "env": [{"name": "A"}]}
            ]
        }
    )
    checkpoint.keep(tmp_path / "pods" / "u1", pod, make=True)
    assert list(checkpoint.kept(tmp_path)) == [pod]
    assert stat.S_IMODE((tmp_path / "pods" / "u1" / "pod").stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00" * 40, json.dumps({"kind": "pod"}).encode()])
def test_a_damaged_record_costs_only_its_pod(tmp_path: Path, damage: bytes) -> None:
    for uid in ("u1", "u2"):
        checkpoint.keep(tmp_path / "pods" / uid, make_pod(metadata={"uid": uid}), make=True)
    (tmp_path / "pods" / "u1" / "pod").write_bytes(damage)
    assert [pod.metadata.uid for pod in checkpoint.kept(tmp_path)] == ["u2"]


def test_a_record_in_another_pods_folder_counts_for_neither(tmp_path: Path) -> None:
    checkpoint.keep(tmp_path / "pods" / "u1", make_pod(), make=True)
    (tmp_path / "pods" / "u1").rename(tmp_path / "pods" / "u2")
    assert list(checkpoint.kept(tmp_path)) == []


def test_nothing_is_made_for_a_pod_whose_folder_is_gone(tmp_path: Path) -> None:
    checkpoint.keep(tmp_path / "pods" / "u1", make_pod(), make=False)
    assert not (tmp_path / "pods").exists()


def test_only_what_facts_do_not_tell_is_written_again() -> None:
    pod = make_pod(metadata={"resourceVersion": "1"})
    later = msgspec.structs.replace(pod.metadata, resource_version="2")
    assert checkpoint.differs(None, pod)
    assert not checkpoint.differs(pod, msgspec.structs.replace(pod, metadata=later))
    assert not checkpoint.differs(
        pod, checkpoint.with_status(pod, PodStatus(phase="Pending", pod_ip="10.0.0.1"))
    )
    assert checkpoint.differs(pod, checkpoint.with_status(pod, PodStatus(phase="Running")))
    assert checkpoint.differs(pod, deleted(pod))
    assert checkpoint.differs(pod, make_pod(spec={"terminationGracePeriodSeconds": 5}))


async def test_a_crash_is_followed_by_a_restart_with_the_services_of_before(tmp_path: Path) -> None:
    first = Node(tmp_path)
    first.services = [WEB]
    async with running(first):
        await first.put(make_pod())
    async with without_api(first, tmp_path) as node:
        (before,) = alive(node.cri)
        node.cri.exit(before, 1)
        await node.advance(1)
        (after,) = alive(node.cri)
        assert after != before and node.state().restart_count == 1
        variables = {e.key: bytes(e.value) for e in node.cri.config(after).envs}
        assert variables["WEB_SERVICE_HOST"] == b"10.96.0.7"


async def test_probes_go_on(tmp_path: Path) -> None:
    app = {"name": "app", "image": "busybox", "livenessProbe": PROBE}
    first = Node(tmp_path)
    async with running(first):
        await first.put(make_pod(spec={"containers": [app], "terminationGracePeriodSeconds": 1}))
    async with without_api(first, tmp_path) as node:
        (before,) = alive(node.cri)
        node.cri.hooks["cat /ok"] = ExecResult(exit_code=1, stdout=b"no", stderr=b"")
        await node.advance(6)
        await node.advance(2)
        assert before not in alive(node.cri) and node.state().restart_count == 1


async def test_what_the_api_no_longer_has_ends_when_it_is_back_and_the_rest_stays(tmp_path: Path) -> None:
    stays, goes = make_pod(), make_pod(metadata={"name": "gone", "uid": "u2"})
    first = Node(tmp_path)
    async with running(first):
        await first.put(stays)
        await first.put(goes)
    async with without_api(first, tmp_path) as node:
        assert len(alive(node.cri)) == 2
        running_before = set(alive(node.cri))
        await node.put(stays)
        node.manager.complete("api")
        await left(node, "u1")
        assert len(alive(node.cri)) == 1 and set(alive(node.cri)) < running_before


async def test_a_successor_of_the_same_name_ends_the_pod_known_from_its_record(tmp_path: Path) -> None:
    first = Node(tmp_path)
    async with running(first):
        await first.put(make_pod())
    async with without_api(first, tmp_path) as node:
        await node.put(make_pod(metadata={"uid": "u2"}))
        node.manager.complete("api")
        await left(node, "u2")


async def test_a_pod_that_does_not_run_is_left_to_the_api(tmp_path: Path) -> None:
    """Its sandbox ended with the machine, say: by now the pod may be another node's."""
    first = Node(tmp_path)
    async with running(first):
        await first.put(make_pod())
    for box in first.cri.sandboxes():
        first.cri.kill_sandbox(box.id)
    async with without_api(first, tmp_path) as node:
        await node.advance(60)
        assert node.manager.workers() == [] and alive(node.cri) == []


async def test_a_deletion_under_way_goes_on(tmp_path: Path) -> None:
    first = Node(tmp_path)
    async with running(first):
        await first.put(make_pod())
        first.cri.slow["stop_container"] = 20.0
        await first.put(deleted(make_pod()))
    async with without_api(first, tmp_path) as node:
        await node.advance(60)
        assert alive(node.cri) == []


async def test_a_pod_the_api_has_told_is_not_taken_from_its_record(tmp_path: Path) -> None:
    first = Node(tmp_path)
    async with running(first):
        await first.put(make_pod())
    second = Node(tmp_path, cri=first.cri, clock=first.clock)
    async with running(second, make_pod(metadata={"uid": "u2"})):
        assert "u1" not in [w.uid for w in second.manager.workers() if not w.removed]
        await left(second, "u2")


async def test_an_api_that_is_there_has_its_say_first(tmp_path: Path) -> None:
    """What it knows of a pod, such as since when it is Ready, is not computed anew from a record."""
    first = Node(tmp_path)
    async with running(first):
        await first.put(make_pod())
        known_to_api = first.pod()
    second = Node(tmp_path, cri=first.cri, clock=first.clock)
    task = asyncio.create_task(second.manager.run())
    await second.advance(4)
    assert second.manager.workers() == []
    await second.put(known_to_api)
    second.manager.complete("api")
    await second.advance(5)
    assert second.pod().status.conditions == known_to_api.status.conditions
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_record_tells_since_when_a_pod_is_ready(tmp_path: Path) -> None:
    app = {"name": "app", "image": "busybox", "readinessProbe": PROBE}
    first = Node(tmp_path)
    async with running(first):
        first.cri.hooks["cat /ok"] = ExecResult(exit_code=1, stdout=b"no", stderr=b"")
        await first.put(make_pod(spec={"containers": [app]}))
        await first.advance(6)
        del first.cri.hooks["cat /ok"]
        await first.advance(6)
        assert first.condition("Ready") == "True"
        before = first.pod().status.conditions
    async with without_api(first, tmp_path) as node:
        assert node.pod().status.conditions == before


async def test_the_status_that_the_api_missed_reaches_it(tmp_path: Path) -> None:
    """The record has the status of the pod's first moments, which is what it is again by now."""
    app = {"name": "app", "image": "busybox", "readinessProbe": PROBE}
    pod = make_pod(spec={"containers": [app]})
    first = Node(tmp_path)
    async with running(first):
        await first.put(pod)
        known_to_api = first.pod()
        assert first.condition("Ready") == "True"
        first.cri.hooks["cat /ok"] = ExecResult(exit_code=1, stdout=b"no", stderr=b"")
        await first.advance(6)
        assert first.condition("Ready") == "False"
        checkpoint.keep(first.settings.pod_dir("u1"), first.pod(), make=False)
    async with without_api(first, tmp_path) as node:
        await node.advance(1)
        assert node.api.patches == []
        await node.put(known_to_api)
        await node.advance(1)
        ready = {c["type"]: c["status"] for c in node.api.patches[-1]["conditions"]}["Ready"]
        assert ready == "False"
