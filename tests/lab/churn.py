"""kill -9 of the agent, again and again, while pods come, run, end and go: none of them may notice.

Pods that stay have probes of every second; each cycle adds a batch, removes the one before, and kills the
agent at a random moment of that work.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

from kit import Namespace, container, container_status, http_server, is_ready, pod, until

NODE = "n1"
STAYING = ("stays-http", "stays-exec", "stays-plain")
ENDS_WITH = 7
_EVERY = {"periodSeconds": 1, "failureThreshold": 3}


def _staying() -> list[dict[str, Any]]:
    http = {"httpGet": {"port": 8080, "path": "/"}, **_EVERY}
    exec_ = {"exec": {"command": ["true"]}, **_EVERY}
    return [
        pod(
            "stays-http",
            container(http_server("hi"), readinessProbe=http, livenessProbe=http),
            node=NODE,
        ),
        pod("stays-exec", container(readinessProbe=exec_, startupProbe=exec_), node=NODE),
        pod("stays-plain", container(), node=NODE),
    ]


def _batch(cycle: int) -> list[dict[str, Any]]:
    ends = container(f"busybox sleep 0.3; exit {ENDS_WITH}")
    return [
        pod(f"comes-{cycle}", container(), node=NODE),
        pod(f"ends-{cycle}", ends, node=NODE, restartPolicy="Never"),
    ]


def _names(cycle: int) -> list[str]:
    return [f"comes-{cycle}", f"ends-{cycle}"]


def identity(found: dict[str, Any]) -> tuple[Any, ...]:
    """What may not change of a pod that stays: its container, its restarts, since when it is Ready."""
    status = container_status(found)
    ready = next(c for c in found["status"]["conditions"] if c["type"] == "Ready")
    return status["containerID"], status["restartCount"], ready["status"], ready["lastTransitionTime"]


def _check_ended(ns: Namespace, cycle: int) -> None:
    """The batch did what it should, once, whatever happened to the agent meanwhile."""
    ended = ns.wait_phase(f"ends-{cycle}", "Failed")
    status = container_status(ended)
    assert status["state"]["terminated"]["exitCode"] == ENDS_WITH, status
    assert status["restartCount"] == 0, status
    status = container_status(ns.wait_pod(f"comes-{cycle}", "Running and Ready", is_ready))
    assert status["restartCount"] == 0, status


def doubled(ns: Namespace) -> list[str]:
    """Pods of the namespace that the runtime has more than one container of."""
    rows = ns.cluster.node(NODE, ns.cluster.program("nodelet-cri"), "ps").splitlines()
    counts = Counter(row.split()[0] for row in rows if row.startswith(f"{ns.name}/"))
    return [name for name, count in counts.items() if count > 1]


def kill_agent_under_churn(ns: Namespace, *, cycles: int, seed: int) -> None:
    """Fails when a pod is restarted, flips, is lost, doubled, or ends otherwise than by itself."""
    chance = random.Random(seed)
    ns.apply(*_staying())
    before = {name: identity(ns.wait_running(name)) for name in STAYING}
    pids = {name: ns.cluster.pid_of(found[0], node=NODE) for name, found in before.items()}
    for cycle in range(cycles):
        ns.apply(*_batch(cycle))
        if cycle:
            ns.kubectl("delete", "pod", *_names(cycle - 1), "--wait=false", "--grace-period=1")
        time.sleep(chance.random())  # the moment is the test
        with ns.cluster.killed(NODE, "nodelet"):
            pass
        _check_ended(ns, cycle)
        assert doubled(ns) == [], f"cycle {cycle}"
        for name in STAYING:
            assert identity(ns.pod(name)) == before[name], f"{name} in cycle {cycle}"
    ns.kubectl("delete", "pod", *_names(cycles - 1), "--wait=false", "--grace-period=1")
    left = {f"pod/{name}" for name in STAYING}
    until("only the pods that stay", lambda: set(ns.kubectl("get", "pods", "-o", "name").split()) == left)
    rows = ns.cluster.node(NODE, ns.cluster.program("nodelet-cri"), "ps").splitlines()
    assert len([row for row in rows if row.startswith(f"{ns.name}/")]) == len(STAYING), rows
    assert {n: ns.cluster.pid_of(found[0], node=NODE) for n, found in before.items()} == pids
