"""What a node with many idle pods costs: memory of its agent and of all its software, and CPU.

The node's software is told from its containers by the mount namespace. Service proxy and overlay, which are
parts of nodelet, are left out of the stock node's figures: they are kubelet, containerd and shims alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from deploy.labkit.lab import Lab
from tests.bench import costs
from tests.bench.pods import PodBench
from tests.bench.report import Figure

PODS = 100
_SETTLE_SECONDS = 30.0
_IDLE_SECONDS = 60.0
_NAMES = ("nodelet", "kubelet", "containerd")
"""Of programs that count: nodelet, nodelet-cri, nodelet-pod …, containerd, containerd-shim …"""
_AGENTS = ("nodelet", "kubelet")


def run(lab: Lab, *, ours: str, stock: str, say: Callable[[str], None]) -> list[Figure]:
    """The benchmark `node`."""
    bench = PodBench(lab, ours=ours, stock=stock, say=say)
    with bench.namespace():
        found = []
        for node in (ours, stock):
            say(f"{PODS} pods on {node}, and {_IDLE_SECONDS:.0f} s without work")
            bench.fill(node, PODS)
            time.sleep(_SETTLE_SECONDS)
            found.append(_measure(lab, node))
            bench.empty(node, PODS)
    return [
        Figure(what=f"{what}, {PODS} pods", ours=mine, stock=theirs, unit=unit)
        for (what, unit), mine, theirs in zip(_FIGURES, *found, strict=True)
    ]


_FIGURES = (
    ("memory (PSS) of the agent", "MB"),
    ("memory (PSS) of all node software", "MB"),
    ("CPU of all node software, idle", "%"),
)


def _measure(lab: Lab, node: str) -> tuple[float, float, float]:
    """In the order of _FIGURES."""
    space = costs.namespace(lab.machine(node).holder.pid, "mnt")
    software = {
        pid: name
        for pid, name, _ in costs.processes()
        if name.startswith(_NAMES) and costs.namespace(pid, "mnt") == space
    }
    busy = costs.busy(list(software), _IDLE_SECONDS)
    memory = {pid: costs.pss(pid) for pid in software}
    agent = sum(size for pid, size in memory.items() if software[pid] in _AGENTS)
    return agent, sum(memory.values()), busy
