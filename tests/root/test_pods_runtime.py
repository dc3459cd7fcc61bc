"""The pods component on a real `nodelet-cri`: the same life of a pod as in the unit tests, with real
processes.

Only the API, the probes' targets and the volumes are fakes; times are real and bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from crinode import BUSYBOX, CriNode
from podkit import Node, make_pod

from agent.pods.runtime import Runtime
from host.cgroups import Cgroups
from host.clocks import SystemClock


@pytest.fixture
async def kit(node: CriNode, tmp_path: Path) -> AsyncIterator[Node]:
    runtime = Runtime(endpoint=f"unix://{node.socket}")
    await runtime.open()
    made = Node(tmp_path, cri=runtime, clock=SystemClock(), cgroup_root=node.cgroup_parent, cgroups=Cgroups())
    task = asyncio.create_task(made.manager.run())
    await asyncio.wait_for(made.manager.observer.synced.wait(), 10)
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await runtime.close()


def shell(script: str, **changes: Any) -> Any:
    container = {
        "name": "app",
        "image": BUSYBOX,
        "command": ["sh", "-c", script],
        "imagePullPolicy": "IfNotPresent",
    }
    return make_pod(**{**changes, "spec": {"containers": [container], **changes.get("spec", {})}})


async def until(fact: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a fact."""
    began = time.monotonic()
    while not fact():
        if time.monotonic() - began > seconds:
            raise AssertionError("did not happen")
        await asyncio.sleep(0.002)


def deleted(pod: Any, grace: int = 30) -> Any:
    meta = msgspec.structs.replace(
        pod.metadata, deletion_timestamp="2026-01-01T00:00:00Z", deletion_grace_period_seconds=grace
    )
    return msgspec.structs.replace(pod, metadata=meta)


TRAP = "trap 'exit 0' TERM; echo ready; sleep 1000 & wait"


async def test_created_running_deleted_gone(kit: Node) -> None:
    for number in range(5):
        pod = shell(TRAP, metadata={"uid": f"q{number}"})
        kit.manager.put(pod)
        await until(lambda: bool(kit.api.patches) and kit.api.patches[-1]["phase"] == "Running")
        assert kit.pod().status.pod_ip.startswith("10.99.0.")
        log = Path(kit.manager.log_path("default", "web", "app") or "")
        await until(
            lambda path=log: "ready" in path.read_text()
        )  # a TERM before the trap is lost on process 1
        kit.manager.put(deleted(pod))
        await until(lambda n=number: any(uid == f"q{n}" for _, uid, _ in kit.api.deleted))
        kit.manager.remove(deleted(pod))
        await until(lambda: kit.manager.find("default", "web") is None)
        kit.api.patches.clear()


async def test_a_killed_container_is_restarted_and_counted(kit: Node) -> None:
    kit.manager.put(shell("sleep 1000"))
    await until(lambda: bool(kit.api.patches) and kit.phase() == "Running")
    path = f"{kit.settings.cgroup_root}/kubepods/besteffort/podu1"
    Cgroups().kill(f"{path}/{kit.manager.container_id('default', 'web', 'app')}")
    await until(lambda: kit.state().restart_count == 1 and kit.state().state.running is not None)
    assert kit.state().last_state.terminated.exit_code == 137


async def test_exit_codes_and_termination_message(kit: Node) -> None:
    script = "echo -n no luck > /dev/termination-log; exit 7"
    kit.manager.put(shell(script, spec={"restartPolicy": "Never"}))
    await until(lambda: kit.phase() == "Failed")
    ended = kit.state().state.terminated
    assert (ended.exit_code, ended.message, ended.reason) == (7, "no luck", "Error")


async def test_hosts_hostname_and_environment(kit: Node) -> None:
    script = "hostname; cat /etc/hosts; cat /etc/resolv.conf; env; sleep 100"
    env = [{"name": "GREETING", "value": "hello"}, {"name": "WHO", "value": "$(GREETING) world"}]
    container = {"name": "app", "image": BUSYBOX, "command": ["sh", "-c", script], "env": env}
    kit.manager.put(
        make_pod(spec={"containers": [container], "hostname": "busybox-1", "subdomain": "default-subdomain"})
    )
    await until(lambda: kit.phase() == "Running")
    path = Path(kit.manager.log_path("default", "web", "app") or "")
    await until(lambda: "WHO=" in path.read_text())
    text = path.read_text()
    assert "busybox-1.default-subdomain.default.svc.cluster.local\tbusybox-1" in text
    assert "nameserver 10.96.0.10" in text and "default.svc.cluster.local svc.cluster.local" in text
    assert "WHO=hello world" in text


async def test_a_command_that_is_not_there(kit: Node) -> None:
    container = {"name": "app", "image": BUSYBOX, "command": ["/nope"]}
    kit.manager.put(make_pod(spec={"containers": [container], "restartPolicy": "Never"}))
    await until(lambda: kit.phase() == "Failed")
    assert kit.state().state.terminated.exit_code == 128


async def test_limits_reach_the_kernel(kit: Node) -> None:
    resources = {"limits": {"cpu": "1", "memory": "500M"}}
    container = {"name": "app", "image": BUSYBOX, "command": ["sleep", "100"], "resources": resources}
    kit.manager.put(make_pod(spec={"containers": [container]}))
    await until(lambda: kit.phase() == "Running")
    assert kit.pod().status.qos_class == "Guaranteed"
    path = f"{kit.settings.cgroup_root}/kubepods/podu1"
    for cgroup in (path, f"{path}/{kit.manager.container_id('default', 'web', 'app')}"):
        assert Cgroups().stats(cgroup).memory_limit == 499998720
