"""Probe decisions outlive the agent: a restart flips nothing, whatever the API last heard."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from podkit import Node, make_pod, running

from agent.api.structs import PodStatus
from agent.pods import probe_record
from agent.pods.runtime import ExecResult
from agent.probes.state import Kind

PROBE = {"exec": {"command": ["cat", "/ok"]}, "periodSeconds": 60}
READINESS = {"name": "app", "image": "busybox", "readinessProbe": PROBE}
STARTUP = {**READINESS, "startupProbe": PROBE}


def test_a_record_comes_back_for_the_same_run_only(tmp_path: Path) -> None:
    states = {Kind.READINESS: False, Kind.STARTUP: True}
    probe_record.keep(tmp_path, "app", "c1", states)
    assert probe_record.kept(tmp_path, "app", "c1") == states
    assert probe_record.kept(tmp_path, "app", "c2") is None
    assert probe_record.kept(tmp_path, "other", "c1") is None


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00" * 40])
def test_a_damaged_record_counts_as_none(tmp_path: Path, damage: bytes) -> None:
    probe_record.keep(tmp_path, "app", "c1", {Kind.READINESS: True})
    probe_record.path_in(tmp_path, "app").write_bytes(damage)
    assert probe_record.kept(tmp_path, "app", "c1") is None


def test_a_disk_that_refuses_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / "containers").write_bytes(b"a file")
    probe_record.keep(tmp_path, "app", "c1", {Kind.READINESS: True})
    assert probe_record.kept(tmp_path, "app", "c1") is None


@pytest.mark.parametrize("container", [READINESS, STARTUP])
async def test_a_pod_stays_ready_although_the_api_never_heard_of_it(tmp_path: Path, container: dict) -> None:
    pod = make_pod(spec={"containers": [container]})
    first = Node(tmp_path)
    async with running(first):
        await first.put(pod)
        assert first.condition("Ready") == "True"
    second = Node(tmp_path, cri=first.cri, clock=first.clock)
    first.cri.slow["exec_sync"] = 30.0
    async with running(second, pod):
        assert second.condition("Ready") == "True"


async def test_a_pod_stays_unready_although_the_api_says_ready(tmp_path: Path) -> None:
    pod = make_pod(spec={"containers": [{**READINESS, "readinessProbe": {**PROBE, "failureThreshold": 1}}]})
    first = Node(tmp_path)
    async with running(first):
        await first.put(pod)
        stale: PodStatus = first.pod().status
        first.cri.hooks["cat /ok"] = ExecResult(exit_code=1, stdout=b"no", stderr=b"")
        await first.advance(61)
        assert first.condition("Ready") == "False"
    second = Node(tmp_path, cri=first.cri, clock=first.clock)
    first.cri.slow["exec_sync"] = 30.0
    async with running(second, msgspec.structs.replace(pod, status=stale)):
        assert second.condition("Ready") == "False"
