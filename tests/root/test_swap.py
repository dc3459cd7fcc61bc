"""Swap with cgroup v2: what a container may take of it is what the node's policy gives it."""

from __future__ import annotations

from pathlib import Path

import pytest
from crinode import CriNode
from podkit import make_pod
from test_cri_cgroups import CGROUPS, content, limited

from agent.resources.swap import FILE, SwapPolicy, swap_limit

MIB = 1 << 20
FILL = "busybox dd if=/dev/zero of=/dev/shm/fill bs=1M count=24 2>/dev/null && echo full && sleep 1000"
"""24 MiB that only swap can relieve memory of, more than the container's memory limit."""
RESOURCES = {"requests": {"memory": "8Mi"}, "limits": {"memory": "16Mi"}}
pytestmark = [
    pytest.mark.skipif(CGROUPS.mode != "v2", reason="needs cgroup v2 alone"),
    pytest.mark.skipif(len(Path("/proc/swaps").read_text().splitlines()) < 2, reason="needs swap (swapon)"),
]


def allowed(*, limited: bool) -> dict[str, str]:
    """The agent's word for a Burstable container on a node with 64 MiB of memory and 512 MiB of swap."""
    pod = make_pod(spec={"containers": [{"name": "app", "image": "busybox", "resources": RESOURCES}]})
    policy = SwapPolicy(limited=limited, accounting="v2", total=512 * MIB, memory=64 * MIB)
    return dict(swap_limit(pod, pod.spec.containers[0], policy).unified)


async def test_with_limited_swap_a_burstable_container_outgrows_its_memory(node: CriNode) -> None:
    linux = limited(memory_limit_in_bytes=16 * MIB, unified=allowed(limited=True))
    _, container, config = await node.launch("sh", "-c", FILL, linux=linux)
    while node.container_log(config) != ["full"]:
        await node.exec(container, "sleep", "0.1")
    cgroup = node.cgroup_of(config, container)
    assert content(cgroup, FILE) == str(64 * MIB)
    assert int(content(cgroup, "memory.swap.current")) >= 8 * MIB


async def test_without_it_the_same_container_is_killed(node: CriNode) -> None:
    linux = limited(memory_limit_in_bytes=16 * MIB, unified=allowed(limited=False))
    _, container, config = await node.launch("sh", "-c", FILL + "; exit 137", linux=linux)
    assert content(node.cgroup_of(config, container), FILE) in ("0", "")  # gone if it was quick
    assert (await node.wait_exit(container)).reason == "OOMKilled"
