"""Pods in trouble: bad images, missing objects, refusals, outages, restarts of the agent."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import msgspec
from podkit import Node, Program, deleted, make_pod, running

from agent.api import errors
from agent.api.structs import ConfigMap, ObjectMeta, Secret
from agent.pods.runtime import ExecResult
from agent.resources.admission import NodeFacts
from agent.volumes.base import VolumeError


async def test_image_that_cannot_be_pulled_says_why_and_recovers(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        pod = make_pod(spec={"containers": [{"name": "app", "image": "busybox:nope"}]})
        await node.put(pod)
        waiting = node.state().state.waiting
        assert waiting.reason == "ErrImagePull" and "not found" in waiting.message
        await node.advance(3)
        assert node.state().state.waiting.reason == "ImagePullBackOff"
        assert "not found" in node.state().state.waiting.message
        assert ("BackOff", 'Back-off pulling image "busybox:nope"') in node.events.seen
        fixed = make_pod(spec={"containers": [{"name": "app", "image": "busybox"}]})
        await node.put(fixed)
        assert node.phase() == "Running"


async def test_pull_policies(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        never = {"name": "app", "image": "absent", "imagePullPolicy": "Never"}
        await node.put(make_pod(spec={"containers": [never]}))
        waiting = node.state().state.waiting
        assert waiting.reason == "ErrImageNeverPull"
        assert waiting.message == 'Container image "absent" is not present with pull policy of Never'
        node.cri.calls.clear()
        node.cri.add_image("busybox:1")
        there = {"name": "app", "image": "busybox:1"}
        await node.put(make_pod(metadata={"name": "b", "uid": "u2"}, spec={"containers": [there]}))
        assert "pull" not in [call for call, _ in node.cri.calls]
        text = 'Container image "busybox:1" already present on machine and can be accessed by the pod'
        assert node.events.message("Pulled") == text
        bad = {"name": "app", "image": "UPPER/case::x"}
        await node.put(make_pod(metadata={"name": "c", "uid": "u3"}, spec={"containers": [bad]}))
        assert node.pod("c").status.container_statuses[0].state.waiting.reason == "InvalidImageName"


async def test_missing_config_map_holds_the_container_and_names_the_key(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        ref = {"configMapKeyRef": {"name": "cm", "key": "colour"}}
        container = {"name": "app", "image": "busybox", "env": [{"name": "COLOUR", "valueFrom": ref}]}
        await node.put(make_pod(spec={"containers": [container]}))
        waiting = node.state().state.waiting
        assert (waiting.reason, waiting.message) == ("CreateContainerConfigError", 'configmap "cm" not found')
        cm = ConfigMap(metadata=ObjectMeta(name="cm", namespace="default"), data={"size": "1"})
        node.sources.config_maps["default/cm"] = cm
        await node.advance(2)
        assert node.state().state.waiting.message == "couldn't find key colour in ConfigMap default/cm"
        node.sources.config_maps["default/cm"] = msgspec.structs.replace(cm, data={"colour": "red"})
        await node.advance(5)
        assert node.phase() == "Running"
        envs = {e.key: e.value for e in node.cri.config(node.cri.containers()[0].id).envs}
        assert envs["COLOUR"] == b"red"


async def test_a_command_that_cannot_be_executed_is_a_crash_with_128(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.programs["app"] = Program(refuses='exec: "nope": executable file not found in $PATH')
        await node.put(make_pod())
        await node.advance(3)
        status = node.state()
        assert status.state.waiting.reason == "CrashLoopBackOff"
        assert (status.last_state.terminated.exit_code, status.last_state.terminated.reason) == (
            128,
            "StartError",
        )
        assert any("executable file not found" in message for _, message in node.events.seen)


async def test_a_failed_post_start_hook_kills_the_container(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.hooks["false"] = ExecResult(exit_code=1, stdout=b"", stderr=b"secret")
        container = {
            "name": "app",
            "image": "busybox",
            "lifecycle": {"postStart": {"exec": {"command": ["false"]}}},
        }
        await node.put(make_pod(spec={"containers": [container], "restartPolicy": "Never"}))
        assert ("FailedPostStartHook", "PostStartHook failed: exec hook exited with 1") in node.events.seen
        assert node.phase() == "Failed"


async def test_a_volume_that_cannot_be_mounted_names_it_and_other_pods_run(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.volumes.problem = VolumeError('MountVolume.SetUp failed for volume "v" : no such export')
        await node.put(make_pod())
        assert node.phase() == "Pending" and 'volume "v"' in node.events.message("FailedMount")
        node.volumes.problem = None
        await node.put(make_pod(metadata={"name": "other", "uid": "u2"}))
        assert node.pod("other").status.phase == "Running"
        await node.advance(1)
        assert node.phase() == "Running"


async def test_one_hung_pod_does_not_delay_another(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.slow["stop_container"] = 10_000.0
        pod = make_pod()
        await node.put(pod)
        await node.put(deleted(pod))
        await node.put(make_pod(metadata={"name": "other", "uid": "u2"}))
        assert node.pod("other").status.phase == "Running"


async def test_admission_refuses_with_kubelets_reason(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.facts = NodeFacts(name="n1", allocatable={"cpu": "1", "memory": "1Gi"})
        big = {"name": "app", "image": "busybox", "resources": {"requests": {"cpu": "2"}}}
        await node.put(make_pod(spec={"containers": [big]}))
        status = node.pod().status
        assert (status.phase, status.reason) == ("Failed", "OutOfcpu")
        assert node.cri.sandboxes() == []
        await node.advance(1)
        assert node.api.patches[-1]["reason"] == "OutOfcpu"


async def test_agent_restart_keeps_containers_and_readiness(tmp_path: Path) -> None:
    first = Node(tmp_path)
    probe = {"exec": {"command": ["cat", "/ok"]}, "periodSeconds": 60}
    container = {"name": "app", "image": "busybox", "readinessProbe": probe}
    pod = make_pod(spec={"containers": [container]})
    async with running(first):
        await first.put(pod)
        reported = first.pod()
        assert first.condition("Ready") == "True"
    second = Node(tmp_path, cri=first.cri, clock=first.clock)
    first.cri.slow["exec_sync"] = 30.0
    async with running(second, reported):
        assert second.condition("Ready") == "True" and second.phase() == "Running"
        await second.advance(1)
        assert second.api.patches == [], "nothing changed, so nothing is written"
        assert len(first.cri.containers()) == 1


async def test_pods_deleted_while_the_agent_was_away_are_removed(tmp_path: Path) -> None:
    first = Node(tmp_path)
    async with running(first):
        await first.put(make_pod())
    second = Node(tmp_path, cri=first.cri, clock=first.clock)
    async with running(second):
        await second.advance(1)
        assert first.cri.sandboxes() == [] and second.volumes.torn == ["u1"]


async def test_terminal_phase_never_reverts(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        await node.put(make_pod(status={"phase": "Succeeded"}))
        await node.advance(5)
        assert node.phase() == "Succeeded" and node.cri.containers() == []


async def test_status_survives_an_api_outage_and_the_latest_wins(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.api.refuse = errors.Unreachable("connection refused")
        await node.put(make_pod())
        node.cri.exit(node.cri.containers()[0].id, 1)
        await node.advance(5)
        node.api.refuse = None
        await node.advance(10)
        assert len(node.api.patches) == 1
        assert node.api.patches[0]["containerStatuses"][0]["restartCount"] == 1


async def test_events_stream_lost_means_a_fresh_look(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        await node.put(make_pod())
        container = node.cri.containers()[0].id
        streams, node.cri._streams = node.cri._streams, set()
        node.cri.exit(container, 1)  # nobody hears of it
        node.cri._streams = streams
        node.cri.drop_streams()
        await node.advance(1)
        assert node.state().restart_count == 1


async def test_run_as_non_root_is_refused_clearly(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        await node.put(make_pod(spec={"securityContext": {"runAsNonRoot": True}}))
        waiting = node.state().state.waiting
        assert waiting.reason == "CreateContainerConfigError"
        assert waiting.message.startswith("container has runAsNonRoot and image will run as root")


async def test_pull_secret_is_used_when_it_fits(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        seen: list[Any] = []
        pull = node.cri.pull

        async def watch(ref: str, *, auth: Any = None, sandbox: Any = None) -> str:
            seen.append(auth)
            return await pull(ref, auth=auth)

        node.cri.pull = watch  # type: ignore[method-assign]
        node.cri.registry["reg.example/team/app:1"] = node.cri.images["busybox:latest"]
        raw = b'{"auths": {"reg.example": {"username": "u", "password": "p"}}}'
        data = {".dockerconfigjson": base64.b64encode(raw).decode()}
        node.sources.secrets["default/reg"] = Secret(metadata=ObjectMeta(name="reg"), data=data)
        container = {"name": "app", "image": "reg.example/team/app:1"}
        await node.put(make_pod(spec={"containers": [container], "imagePullSecrets": [{"name": "reg"}]}))
        assert node.phase() == "Running" and (seen[0].username, seen[0].password) == ("u", "p")


async def test_after_a_reboot_the_restart_count_goes_on(tmp_path: Path) -> None:
    first = Node(tmp_path)
    async with running(first):
        await first.put(make_pod())
        first.cri.exit(first.cri.containers()[0].id, 1)
        await first.settle()
        reported = first.pod()
        assert first.state().restart_count == 1
    second = Node(tmp_path / "fresh", clock=first.clock)
    async with running(second, reported):
        await second.settle()
        assert second.phase() == "Running" and second.state().restart_count == 2
        assert second.cri.config(second.cri.containers()[0].id).metadata.attempt == 2


async def test_a_namesake_in_the_api_is_left_alone(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.api.refuse = errors.Conflict("uid differs", status=409)
        pod = make_pod()
        await node.put(pod)
        await node.put(deleted(pod))
        await node.advance(60)
        node.api.refuse = None
        await node.advance(60)
        assert node.api.deleted == [] and node.api.patches == []
