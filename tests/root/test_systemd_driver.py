"""Pods whose cgroups are systemd's units: what systemd knows of them, what it undoes, what is left.

Needs systemd as process 1 and cgroup2 alone; tests/vm runs this file, and others with the same driver.
"""

from __future__ import annotations

import subprocess
from typing import Any

import crileaks
import pytest
from crinode import DRIVER, CriNode
from podkit import make_pod
from test_cri_cgroups import content, limited, update

from agent.resources.pod_cgroups import PodCgroups
from host.cgroups import Resources, units
from host.cgroups.driver import load
from host.systemd import Systemd
from proto.cri import runtime_pb2 as pb

pytestmark = pytest.mark.skipif(
    DRIVER != "systemd", reason="needs systemd as process 1 and NODELET_TEST_CGROUP_DRIVER=systemd"
)
LIMITS: dict[str, Any] = {
    "cpu_shares": 512,
    "cpu_quota": 12_340,
    "cpu_period": 100_000,
    "memory_limit_in_bytes": 64 << 20,
    "cpuset_cpus": "0",
}
FILES = ("cpu.weight", "cpu.max", "memory.max", "cpuset.cpus", "pids.max", "memory.oom.group")


def systemctl(*words: str) -> str:
    """What it prints; an error fails the test."""
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def shown(unit: str, *names: str) -> dict[str, str]:
    """Properties as `systemctl show` has them."""
    lines = systemctl("show", unit, *(f"--property={name}" for name in names)).splitlines()
    return dict(line.split("=", 1) for line in lines)


def loaded(prefix: str) -> list[str]:
    """Units of any state whose names begin so."""
    lines = systemctl("list-units", "--all", "--plain", "--no-legend", f"{prefix}*").splitlines()
    return [line.split()[0] for line in lines]


def values(path: str) -> dict[str, str]:
    return {name: content(path, name) for name in FILES}


async def test_the_runtime_says_so(node: CriNode) -> None:
    answer = await node.runtime.RuntimeConfig(pb.RuntimeConfigRequest())
    assert answer.linux.cgroup_driver == pb.SYSTEMD


async def test_a_container_is_a_scope_that_systemd_knows(node: CriNode) -> None:
    _, container, config = await node.launch("sleep", "1000", linux=limited(**LIMITS))
    path = node.cgroup_of(config, container)
    scope = units.scope_name(container)
    names = ("ActiveState", "Slice", "Delegate", "Transient", "CPUWeight", "MemoryMax", "TasksMax")
    assert shown(scope, *names, "ControlGroup", "CPUQuotaPerSecUSec", "AllowedCPUs") == {
        "ActiveState": "active",
        "Slice": config.linux.cgroup_parent,
        "Delegate": "yes",
        "Transient": "yes",
        "CPUWeight": "59",
        "MemoryMax": str(64 << 20),
        "TasksMax": "infinity",
        "ControlGroup": path,
        "CPUQuotaPerSecUSec": "130ms",
        "AllowedCPUs": "0",
    }
    assert content(path, "cpu.max") == "12340 100000", "the file is exact where systemd rounds up"
    assert content(path, "memory.max") == str(64 << 20)
    assert (await node.inside(container, "cat /sys/fs/cgroup/memory.max")) == str(64 << 20)


async def test_a_reload_undoes_neither_limits_nor_devices(node: CriNode) -> None:
    """The classic defects: limits written behind systemd's back and device rules, gone at daemon-reload."""
    grouped = {"memory.oom.group": "1", "memory.high": str(48 << 20)}
    linux = limited(**LIMITS, unified=grouped)
    asked = [pb.Device(host_path="/dev/kmsg", container_path="/dev/log", permissions="w")]
    _, container, config = await node.launch("sleep", "1000", linux=linux, devices=asked)
    path = node.cgroup_of(config, container)
    await update(node, container, memory_limit_in_bytes=80 << 20, cpu_quota=20_000)
    before = values(path)
    assert (before["memory.max"], before["cpu.max"]) == (str(80 << 20), "20000 100000")
    assert before["memory.oom.group"] == "1"
    systemctl("daemon-reload")
    # Something that makes systemd write the whole group again, as a change by an administrator would.
    systemctl("set-property", "--runtime", units.scope_name(container), "IOWeight=77")
    after = values(path)
    if Systemd().version() < units.OOM_POLICY_OF_SCOPES:
        after["memory.oom.group"] = "1"  # older ones reset it then, and have no word for it
    assert after == before
    script = "cat /dev/log; : >/dev/log && echo written; busybox mknod /m c 1 1; head -c 1 /m || echo refused"
    answer = await node.exec(container, "sh", "-c", script)
    assert answer.stdout == b"written\nrefused\n"
    assert b"can't open '/dev/log': Operation not permitted" in answer.stderr


async def test_an_out_of_memory_kill_of_the_whole_group_is_told(node: CriNode) -> None:
    """The holder outlives the group, or systemd would take the counter away with it."""
    script = "busybox dd if=/dev/zero of=/dev/null bs=64M count=1; sleep 1000"
    linux = limited(memory_limit_in_bytes=16 << 20, unified={"memory.oom.group": "1"})
    linux.resources.memory_swap_limit_in_bytes = 16 << 20
    _, container, _ = await node.launch("sh", "-c", script, linux=linux)
    status = await node.wait_exit(container)
    assert (status.reason, status.exit_code) == ("OOMKilled", 137)


async def test_an_exited_container_leaves_no_scope(node: CriNode) -> None:
    _, container, config = await node.launch("sh", "-c", "exit 3")
    assert (await node.wait_exit(container)).exit_code == 3
    await node.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
    assert loaded(units.scope_name(container)) == []
    assert not load("cgroupfs").exists(node.cgroup_of(config, container))


@pytest.mark.parametrize("parent", ["/kubepods/pod1", "a--b.slice"])
async def test_a_parent_that_is_no_slice_is_refused(node: CriNode, parent: str) -> None:
    config = node.sandbox_config()
    config.linux.cgroup_parent = parent
    with pytest.raises(Exception, match="slice"):
        await node.run_pod(config)


async def test_a_pod_with_a_shared_pid_namespace(node: CriNode) -> None:
    config = node.sandbox_config()
    config.linux.security_context.namespace_options.pid = pb.POD
    _, container = await node.launch_with(config, "sleep", "1000")
    assert "1 pause" in (await node.inside(container, "for i in 1; do echo $i $(cat /proc/$i/comm); done"))


@pytest.mark.parametrize(
    "name", ["runtime.container_held", "runtime.container_recorded", "runtime.container_cgroup"]
)
async def test_a_daemon_killed_on_the_way_leaves_nothing(node: CriNode, name: str) -> None:
    before = node.picture().without_descriptors()
    await node.restart(failpoint=name)
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    container = await node.create(sandbox, config, "sleep", "1000")
    node.wait_end()
    await node.revive()
    # It was on record, so it is prepared anew, and runs.
    await node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    assert (await node.status(container)).state == pb.CONTAINER_RUNNING
    assert loaded(units.SCOPE_PREFIX) == [units.scope_name(container)]
    await node.restart()
    assert (await node.status(container)).state == pb.CONTAINER_RUNNING, "kill -9 ends no container"
    await node.clean()
    assert loaded(units.SCOPE_PREFIX) == []
    after = node.picture().without_descriptors()
    assert crileaks.difference(before, after) == []


async def test_the_agents_slices_hold_the_runtimes_scopes(node: CriNode) -> None:
    cgroups = load("systemd")
    root = f"/{units.unit_of(node.cgroup_parent).removesuffix('.slice')}"
    pods = PodCgroups(cgroups=cgroups, root=root, pids_limit=200)
    limits = {"cpu": "500m", "memory": "128Mi"}
    container = {
        "name": "main",
        "image": "busybox",
        "resources": {"limits": limits, "requests": {"cpu": "1m"}},
    }
    pod = make_pod(metadata={"uid": "12-34"}, spec={"containers": [container]})
    path = await pods.create(pod)
    assert path.endswith(f"-kubepods-burstable.slice/{pods.parent(pod)}")
    config = node.sandbox_config()
    config.linux.cgroup_parent = pods.parent(pod)
    _, made = await node.launch_with(config, "sleep", "1000")
    assert shown(units.scope_name(made), "ControlGroup")["ControlGroup"].startswith(f"{path}/")
    expected = {"memory.max": str(128 << 20), "cpu.max": "50000 100000", "pids.max": "200"}
    assert {name: content(path, name) for name in expected} == expected
    systemctl("daemon-reload")
    await pods.update(pod, Resources(memory_limit=256 << 20))
    expected["memory.max"] = str(256 << 20)
    assert {name: content(path, name) for name in expected} == expected
    assert shown(pods.parent(pod), "MemoryMax")["MemoryMax"] == str(256 << 20)
    await node.clean()
    await pods.remove(pod)
    assert loaded(pods.parent(pod)) == []
    assert not cgroups.exists(path)
