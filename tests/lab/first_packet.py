"""Pods whose first act is to send: of those that a policy forbids to, nothing ever arrives (P20)."""

from __future__ import annotations

import json
from typing import Any

from kit import Namespace, container, pod, until
from netpol import labelled

_NODES = ("n1", "n2")
_ECHOES = 3
_WAVE_SECONDS = 300.0


def denied_pods_send_nothing(ns: Namespace, *, starts: int, at_once: int) -> None:
    """Start pods that may not send, on both nodes and a wave at a time, and a few that may.

    What arrives is counted by the receiver's kernel (snmp_counter.rst, IcmpInEchos), which misses no packet.
    The last pods show that the count would have told.
    """
    denied = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "denied"},
        "spec": {"podSelector": labelled(app="denied"), "policyTypes": ["Egress"]},
    }
    ns.apply(pod("receiver", node="n2"), denied)
    address = ns.wait_running("receiver")["status"]["podIP"]
    before = _echoes(ns)
    for first in range(0, starts, at_once):
        _wave(ns, address, range(first, min(first + at_once, starts)))
        assert _echoes(ns) == before
    ns.apply(*(_sender(f"free-{number}", "free", address, number) for number in range(4)))
    until("the others have tried", lambda: _finished(ns, "free") == 4)
    assert _echoes(ns) >= before + 4 * _ECHOES


def _wave(ns: Namespace, address: str, numbers: range) -> None:
    ns.apply(*(_sender(f"denied-{number}", "denied", address, number) for number in numbers))
    until("all have tried", lambda: _finished(ns, "denied") == len(numbers), timeout=_WAVE_SECONDS)
    ns.kubectl("delete", "pods", "-l", "app=denied", "--wait=false")
    until("none is left", lambda: "denied-" not in ns.kubectl("get", "pods"), timeout=_WAVE_SECONDS)


def _sender(name: str, app: str, address: str, number: int) -> dict[str, Any]:
    script = f"ping -c {_ECHOES} -i 0.2 -W 1 {address}; exit 0"
    node = _NODES[number % len(_NODES)]
    return pod(name, container(script), node=node, labels={"app": app}, restartPolicy="Never")


def _echoes(ns: Namespace) -> int:
    """Echo requests that have come in."""
    lines = [line.split() for line in ns.sh("receiver", "grep ^Icmp: /proc/net/snmp").splitlines()]
    return int(dict(zip(*lines, strict=True))["InEchos"])


def _finished(ns: Namespace, app: str) -> int:
    listed = json.loads(ns.kubectl("get", "pods", "-l", f"app={app}", "-o", "json"))["items"]
    return sum(one["status"].get("phase") == "Succeeded" for one in listed)
