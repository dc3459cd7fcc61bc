"""Rows A09, B24, B25, B26, B28: limits, classes and defaults, as the kernel has them."""

from pathlib import Path

import pytest
from kit import container, container_status, pod, until

from host.cgroups import Cgroups

MIB = 1 << 20


def cgroup_of(found, lab, level: str) -> str:
    """A pod's cgroup on n1."""
    return f"{lab.layout.node_cgroup('n1')}/kubepods/{level}pod{found['metadata']['uid']}"


def cpu_quota(path: str) -> tuple[int, int]:
    """Microseconds of CPU time, and in how many."""
    cgroups = Cgroups()
    if cgroups.mode == "v2":
        quota, period = (cgroups.folders(path)[0] / "cpu.max").read_text().split()
        return int(quota), int(period)
    folder = next(f for f in cgroups.folders(path) if (f / "cpu.cfs_quota_us").exists())
    return tuple(int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))


def swap_limit(path: str) -> str:
    """As the kernel has it: on v1 of memory and swap together."""
    for folder in Cgroups().folders(path):
        for name in ("memory.swap.max", "memory.memsw.limit_in_bytes"):
            if (folder / name).exists():
                return (folder / name).read_text().strip()
    pytest.skip("this kernel has no swap accounting (CONFIG_MEMCG_SWAP, swapaccount=1)")


def test_b24_limits_reach_the_kernel(ns, lab):
    resources = {"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "memory": "500M"}}
    ns.apply(pod("p", container(resources=resources), node="n1"))
    found = ns.wait_running("p")
    path = cgroup_of(found, lab, "burstable/")
    inner = f"{path}/{container_status(found)['containerID'].rpartition('/')[2]}"
    for each in (path, inner):
        assert cpu_quota(each) == (100_000, 100_000)
        assert Cgroups().stats(each).memory_limit == 499_998_720  # 500M in whole pages
    assert swap_limit(inner) in ("0", "499998720")


def test_b25_a_container_that_runs_out_says_so_and_its_neighbour_lives(ns):
    hungry = {"name": "hungry", "image": "busybox:1.36", "command": ["tail", "-c", "100m", "/dev/zero"]}
    hungry["resources"] = {"limits": {"memory": "16Mi"}}
    ns.apply(pod("p", hungry, container(name="calm"), node="n1", restartPolicy="Never"))
    names = ("hungry", "calm")

    def states(found):
        every = found["status"].get("containerStatuses", ())
        by_name = {status["name"]: status["state"] for status in every}
        return [by_name.get(name, {}) for name in names]

    found = ns.wait_pod("p", "the hungry one has ended", lambda p: "terminated" in states(p)[0])
    ended, calm = states(found)
    assert (ended["terminated"]["reason"], ended["terminated"]["exitCode"]) == ("OOMKilled", 137)
    assert "running" in calm


def test_b25_a_container_that_runs_out_is_restarted_and_told(ns):
    hungry = {"name": "c", "image": "busybox:1.36", "command": ["tail", "-c", "100m", "/dev/zero"]}
    hungry["resources"] = {"limits": {"memory": "16Mi"}}
    ns.apply(pod("p", hungry, node="n1"))
    found = ns.wait_pod("p", "a restart", lambda p: container_status(p).get("restartCount", 0) >= 1)
    last = container_status(found)["lastState"]["terminated"]
    assert (last["reason"], last["exitCode"]) == ("OOMKilled", 137)
    until("event ContainerDied", lambda: "ContainerDied" in ns.reasons("p"))
    told = next(event["message"] for event in ns.events("p") if event["reason"] == "ContainerDied")
    assert "memory" in told and "16Mi" in told
    until("event BackOff", lambda: "BackOff" in ns.reasons("p"))


def may_lower_scores() -> bool:
    """Whether this machine lets us make a process a less likely victim (CAP_SYS_RESOURCE)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("CapEff"))
    return bool(int(line.split()[1], 16) >> 24 & 1)


@pytest.mark.parametrize(
    ("name", "kind", "resources"),
    [
        ("guaranteed", "Guaranteed", {"limits": {"cpu": "100m", "memory": "32Mi"}}),
        ("burstable", "Burstable", {"requests": {"memory": "32Mi"}}),
        ("best-effort", "BestEffort", {}),
    ],
)
def test_b26_the_class_decides_who_the_kernel_ends_first(ns, cluster, name, kind, resources):
    ns.apply(pod(name, container(resources=resources), node="n1"))
    found = ns.wait_running(name)
    assert found["status"]["qosClass"] == kind
    pid = cluster.pid_of(container_status(found)["containerID"], node="n1")
    score = int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    if kind == "BestEffort":
        assert score == 1000
    elif kind == "Burstable":
        assert 2 < score < 1000
    elif may_lower_scores():
        assert score == -997


def test_b28_defaults_of_the_namespace_are_enforced(ns, lab):
    limits = {"type": "Container", "default": {"cpu": "100m", "memory": "100Mi"}}
    spec = {"limits": [limits]}
    ns.apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "d"}, "spec": spec})
    ns.apply(pod("p", container(), node="n1"))
    found = ns.wait_running("p")
    path = cgroup_of(found, lab, "")
    assert cpu_quota(path) == (10_000, 100_000)
    assert Cgroups().stats(path).memory_limit == 100 * MIB
