"""Pods on a behaving fake runtime, in virtual time: what a user sees of one pod's life."""

from __future__ import annotations

from pathlib import Path

import pytest
from podkit import Node, Program, deleted, make_pod, running

from agent.pods.runtime import ExecResult
from agent.resources.admission import NodeFacts


async def test_a_pod_runs_and_says_so_in_one_patch(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        await node.put(make_pod())
        assert node.phase() == "Running"
        assert [node.condition(c) for c in ("Initialized", "Ready", "ContainersReady")] == ["True"] * 3
        status = node.state()
        assert status.container_id == f"nodelet-cri://{node.cri.containers()[0].id}"
        assert (status.ready, status.started, status.restart_count) == (True, True, 0)
        assert node.pod().status.pod_ip == "10.0.0.1"
        assert [p["phase"] for p in node.api.patches] == ["Running"]
        assert node.events.reasons == ["Pulling", "Pulled", "Created", "Started"]
        assert node.clock.monotonic() == 0.0


async def test_a_deleted_pod_is_gone_without_any_waiting(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        pod = make_pod()
        await node.put(pod)
        await node.put(deleted(pod))
        await node.settle()
        assert node.clock.monotonic() == 0.0
        assert node.cri.sandboxes() == [] and node.cri.containers() == []
        assert node.volumes.torn == ["u1"]
        assert node.api.deleted == [("web", "u1", 0)]
        assert node.api.patches[-1]["phase"] == "Failed"
        assert not [
            p for p in node.cgroups.paths if "pod" in p.rsplit("/", 1)[1] and "kubepods" not in p[-9:]
        ]
        node.manager.remove(deleted(pod))
        await node.settle()
        assert node.manager.find("default", "web") is None
        assert list((tmp_path / "logs").iterdir()) == []


async def test_a_container_that_ignores_term_is_killed_at_its_deadline(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.programs["app"] = Program(on_term=None)
        pod = make_pod(spec={"terminationGracePeriodSeconds": 60})
        await node.put(pod)
        await node.put(deleted(pod, 60))
        await node.advance(59)
        assert node.api.deleted == []
        await node.advance(2)
        assert node.api.deleted == [("web", "u1", 0)]
        ended = node.api.patches[-1]["containerStatuses"][0]["state"]["terminated"]
        assert ended["exitCode"] == 137


async def test_a_shorter_grace_replaces_the_kill_under_way(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.programs["app"] = Program(on_term=None)
        pod = make_pod(spec={"terminationGracePeriodSeconds": 600})
        await node.put(pod)
        await node.put(deleted(pod, 600))
        await node.advance(5)
        await node.put(deleted(pod, 1))
        await node.advance(1)
        assert node.api.deleted == [("web", "u1", 0)]


async def test_a_crashing_container_backs_off_and_recovers_after_ten_minutes(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.programs["app"] = Program(lives=1.0, exit_code=3)
        await node.put(make_pod())
        await node.advance(1)  # first exit: restarted at once
        assert node.state().restart_count == 1
        await node.advance(1)
        waiting = node.state().state.waiting
        assert waiting.reason == "CrashLoopBackOff"
        assert waiting.message == "back-off 10s restarting failed container=app pod=web_default(u1)"
        assert node.state().last_state.terminated.exit_code == 3
        assert node.phase() == "Running" and node.condition("Ready") == "False"
        await node.advance(9)
        assert node.state().restart_count == 1
        await node.advance(1)
        assert node.state().restart_count == 2
        node.cri.programs["app"] = Program(lives=700.0, exit_code=3)
        await node.advance(1 + 20)
        assert node.state().restart_count == 3
        await node.advance(701)  # ran over ten minutes: the history is forgotten
        assert node.state().restart_count == 4
        assert len(node.cri.containers("app")) == 2


@pytest.mark.parametrize(
    ("policy", "code", "phase", "count"),
    [
        ("Never", 0, "Succeeded", 0),
        ("Never", 1, "Failed", 0),
        ("OnFailure", 0, "Succeeded", 0),
        ("OnFailure", 1, "Running", 1),
        ("Always", 0, "Running", 1),
    ],
)
async def test_restart_policies(tmp_path: Path, policy: str, code: int, phase: str, count: int) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.programs["app"] = Program(lives=5.0, exit_code=code)
        await node.put(make_pod(spec={"restartPolicy": policy}))
        await node.advance(5)
        assert (node.phase(), node.state().restart_count) == (phase, count)
        if phase in ("Succeeded", "Failed"):
            assert node.state().state.terminated.exit_code == code
            assert node.cri.containers("app"), "the dead container stays, for its logs"
            assert not any(box.ready for box in node.cri.sandboxes()), "but its network is given back"
            assert node.api.patches[-1]["phase"] == phase


async def test_init_containers_run_one_after_the_other(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        for name in ("one", "two"):
            node.cri.programs[name] = Program(lives=5.0)
        inits = [{"name": n, "image": "busybox"} for n in ("one", "two")]
        await node.put(make_pod(spec={"initContainers": inits}))
        assert node.phase() == "Pending" and node.condition("Initialized") == "False"
        assert node.state().state.waiting.reason == "PodInitializing"
        assert [c.name for c in node.cri.containers()] == ["one"]
        await node.advance(5)
        assert [c.name for c in node.cri.containers()] == ["one", "two"]
        await node.advance(5)
        assert node.phase() == "Running" and node.condition("Initialized") == "True"
        assert node.state("one").ready and node.state("one").state.terminated.reason == "Completed"


async def test_a_failing_init_container_is_repeated_or_final(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.programs["one"] = Program(lives=1.0, exit_code=1)
        pod = make_pod(spec={"initContainers": [{"name": "one", "image": "busybox"}]})
        await node.put(pod)
        await node.advance(2)
        assert node.state("one").state.waiting.reason == "CrashLoopBackOff" and node.phase() == "Pending"
        never = make_pod(
            metadata={"name": "once", "uid": "u2"},
            spec={"restartPolicy": "Never", "initContainers": [{"name": "one", "image": "busybox"}]},
        )
        await node.put(never)
        await node.advance(1)
        assert node.pod("once").status.phase == "Failed"


SIDECAR = {"name": "side", "image": "busybox", "restartPolicy": "Always"}


async def test_a_sidecar_starts_before_and_stops_after_the_app(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        pod = make_pod(spec={"initContainers": [SIDECAR]})
        await node.put(pod)
        assert [c.name for c in node.cri.containers()] == ["side", "app"]
        assert node.state("side").started and node.condition("Ready") == "True"
        await node.put(deleted(pod))
        stops = [argument for call, argument in node.cri.calls if call == "stop_container"]
        assert stops == ["app 30", "side 30"]


async def test_a_job_with_a_sidecar_completes(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.programs["app"] = Program(lives=5.0)
        await node.put(make_pod(spec={"initContainers": [SIDECAR], "restartPolicy": "Never"}))
        await node.advance(5)
        assert node.phase() == "Succeeded"
        assert node.state("side").state.terminated is not None


async def test_a_sidecar_is_restarted_even_under_policy_never(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        await node.put(make_pod(spec={"initContainers": [SIDECAR], "restartPolicy": "Never"}))
        node.cri.exit(node.cri.containers("side")[0].id, 1)
        await node.settle()
        assert node.state("side").restart_count == 1 and node.phase() == "Running"


async def test_a_lost_sandbox_is_replaced_and_init_containers_run_again(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.programs["one"] = Program(lives=1.0)
        await node.put(make_pod(spec={"initContainers": [{"name": "one", "image": "busybox"}]}))
        await node.advance(1)
        node.cri.kill_sandbox(node.cri.sandboxes()[0].id)
        await node.advance(1)
        assert "SandboxChanged" in node.events.reasons
        assert node.phase() == "Running"
        assert node.cri.sandboxes()[-1].attempt == 1
        assert node.pod().status.pod_ip == node.cri.sandboxes()[-1].ips[0]
        assert len(node.cri.containers("one")) == 2


async def test_pre_stop_runs_within_the_grace_and_post_start_before_the_next(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        hooks = {"postStart": {"sleep": {"seconds": 5}}, "preStop": {"exec": {"command": ["sleep", "4"]}}}
        first = {"name": "app", "image": "busybox", "lifecycle": hooks}
        pod = make_pod(spec={"containers": [first, {"name": "b", "image": "busybox"}]})
        await node.put(pod)
        assert [c.name for c in node.cri.containers()] == ["app"]
        await node.advance(5)
        assert [c.name for c in node.cri.containers()] == ["app", "b"]
        await node.put(deleted(pod, 10))
        await node.advance(4)
        stops = [argument for call, argument in node.cri.calls if call == "stop_container"]
        assert stops == ["b 10", "app 6"]
        assert node.api.deleted


async def test_liveness_restarts_and_readiness_gates(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        probe = {"exec": {"command": ["cat", "/ok"]}, "periodSeconds": 5, "failureThreshold": 2}
        container = {"name": "app", "image": "busybox", "livenessProbe": probe, "readinessProbe": probe}
        node.cri.hooks["cat /ok"] = ExecResult(exit_code=0, stdout=b"", stderr=b"")
        await node.put(make_pod(spec={"containers": [container]}))
        assert node.condition("Ready") == "True"
        node.cri.hooks["cat /ok"] = ExecResult(exit_code=1, stdout=b"no", stderr=b"")
        await node.advance(10)
        assert ("Killing", "Container app failed liveness probe, will be restarted") in node.events.seen
        assert "Unhealthy" in node.events.reasons
        assert node.state().restart_count == 1
        assert node.condition("Ready") == "False"


async def test_active_deadline(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        await node.put(make_pod(spec={"activeDeadlineSeconds": 20}))
        await node.advance(19)
        assert node.phase() == "Running"
        await node.advance(1)
        status = node.pod().status
        assert (status.phase, status.reason) == ("Failed", "DeadlineExceeded")
        assert not any(c.alive for c in node.cri.containers())


async def test_a_lowered_deadline_counts_from_the_start_as_well(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        await node.put(make_pod(spec={"activeDeadlineSeconds": 100}))
        await node.advance(10)
        await node.put(make_pod(spec={"activeDeadlineSeconds": 20}))
        await node.advance(9)
        assert node.phase() == "Running"
        await node.advance(1)
        assert node.pod().status.reason == "DeadlineExceeded"


async def test_termination_message_is_read_from_its_file(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        await node.put(make_pod(spec={"restartPolicy": "Never"}))
        container = node.cri.containers()[0].id
        mounts = {m.container_path: m.host_path for m in node.cri.config(container).mounts}
        Path(mounts["/dev/termination-log"]).write_text("disk on fire")
        assert "web" in Path(mounts["/etc/hosts"]).read_text()
        node.cri.exit(container, 1)
        await node.settle()
        assert node.state().state.terminated.message == "disk on fire"


async def test_one_exit_restarts_all_where_a_rule_says_so(tmp_path: Path) -> None:
    rule = {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}}
    watched = {"name": "app", "image": "busybox", "restartPolicy": "Never", "restartPolicyRules": [rule]}
    spec = {
        "restartPolicy": "Never",
        "initContainers": [{"name": "one", "image": "once"}],
        "containers": [watched, {"name": "b", "image": "busybox"}],
    }
    async with running(Node(tmp_path)) as node:
        node.cri.add_image("once:latest")
        node.cri.programs["one"] = Program(lives=1)
        await node.put(make_pod(spec=spec))
        await node.advance(1)
        before = {c.name: c.id for c in node.cri.containers()}
        assert set(before) == {"one", "app", "b"}
        assert node.condition("AllContainersRestarting") == "False"
        node.cri.exit(before["app"], 88)
        await node.settle()
        assert node.phase() == "Running"
        await node.advance(1)
        await node.advance(1)
        after = {c.name: c.id for c in node.cri.containers()}
        assert set(after) == {"one", "app", "b"} and not set(after.values()) & set(before.values())
        assert len(node.cri.sandboxes()) == 1
        for name in ("one", "app", "b"):
            assert node.state(name).restart_count == 1, name
        assert node.state("app").last_state.terminated.exit_code == 88
        assert (node.phase(), node.condition("Ready")) == ("Running", "True")
        removals = [argument for call, argument in node.cri.calls if call == "remove_container"]
        assert removals[-1] == before["app"]  # what asked for it goes last
        node.cri.exit(after["app"], 1)
        node.cri.exit(after["b"], 0)
        await node.settle()
        assert node.phase() == "Failed"  # no rule speaks of 1, and the policy is Never


async def test_limits_left_unset_are_told_as_the_nodes_of_now(tmp_path: Path) -> None:
    origin = {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "0"}}
    app = {"name": "app", "image": "busybox", "env": [{"name": "CPUS", "valueFrom": origin}]}
    node = Node(tmp_path)
    node.facts = NodeFacts(name="n1", allocatable={"cpu": "3", "memory": "4Gi", "pods": "110"})
    async with running(node):
        await node.put(make_pod(spec={"containers": [app]}))
        made = node.cri.config(node.cri.containers()[0].id)
        assert ("CPUS", b"3") in [(each.key, each.value) for each in made.envs]
