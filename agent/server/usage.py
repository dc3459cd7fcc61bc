"""CPU and memory of node, pods and containers: from the runtime and /proc to metrics and summary. Pure but
`read_node`.

Times are the runtime's own (Unix nanoseconds), because metrics-server computes rates from them.

Source: k8s.io/kubernetes/pkg/kubelet/metrics/collectors/resource_metrics.go,
k8s.io/kubelet/pkg/apis/stats/v1alpha1.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent.api.meta import JSON
from agent.api.structs import Pod
from agent.api.times import format_time
from agent.server.exposition import Family, Sample


@dataclasses.dataclass(frozen=True)
class Reading:
    """Usage of one thing. CPU in core-nanoseconds since its start, memory in bytes, `time` in Unix
    nanoseconds."""

    time: int
    cpu: int | None
    working_set: int | None
    started: float = 0.0
    """Unix seconds; 0: unknown."""
    swap: int | None = None


@dataclasses.dataclass(frozen=True)
class ContainerReading:
    """Usage of one container, under the names Kubernetes gives it."""

    namespace: str
    pod: str
    uid: str
    container: str
    usage: Reading


def read_node(now: float, *, proc: Path = Path("/proc")) -> Reading:
    """Usage of the whole machine: all busy time of /proc/stat; used memory less the inactive page cache."""
    fields = [int(word) for word in (proc / "stat").read_text().split("\n", 1)[0].split()[1:]]
    # user nice system idle iowait irq softirq steal: all but idle and iowait
    busy = sum(fields[:3]) + sum(fields[5:8])
    found = re.findall(r"^([\w()]+):\s+(\d+) kB$", (proc / "meminfo").read_text(), re.MULTILINE)
    memory = {name: int(size) * 1024 for name, size in found}
    used = memory["MemTotal"] - memory["MemFree"] - memory.get("Inactive(file)", 0)
    boot = re.search(r"^btime (\d+)$", (proc / "stat").read_text(), re.MULTILINE)
    return Reading(
        time=int(now * 1e9),
        cpu=busy * 1_000_000_000 // os.sysconf("SC_CLK_TCK"),
        working_set=used,
        started=float(boot[1]) if boot else 0.0,
    )


_Point = tuple[Reading, dict[str, str]]
_CPU = (
    "cpu_usage_seconds_total",
    "counter",
    "[STABLE] Cumulative cpu time consumed by the {} in core-seconds",
)
_MEMORY = ("memory_working_set_bytes", "gauge", "[STABLE] Current working set of the {} in bytes")
_STARTED = ("start_time_seconds", "gauge", "[STABLE] Start time of the {} since unix epoch in seconds")


def resource_metrics(
    node: Reading | None, containers: Sequence[ContainerReading], *, error: bool
) -> tuple[Family, ...]:
    """The families of /metrics/resource, in kubelet's order and with its names."""
    nodes: list[_Point] = [(node, {})] if node else []
    own: list[_Point] = [(item.usage, _labels(item)) for item in containers]
    pods: list[_Point] = [
        (usage, {"namespace": namespace, "pod": pod})
        for (namespace, pod, _), usage in _pods(containers).items()
    ]
    failed = (Sample(1 if error else 0),)
    text = "1 if there was an error while getting container metrics, 0 otherwise"
    return (
        _family("container", _CPU, _values(own, _cpu_seconds)),
        _family("container", _MEMORY, _values(own, _working_set)),
        _family("container", _STARTED, [(usage.started or None, labels, None) for usage, labels in own]),
        _family("node", _CPU, _values(nodes, _cpu_seconds)),
        _family("node", _MEMORY, _values(nodes, _working_set)),
        _family("pod", _CPU, _values(pods, _cpu_seconds)),
        _family("pod", _MEMORY, _values(pods, _working_set)),
        Family("resource_scrape_error", "gauge", f"[STABLE] {text}", failed),
        Family("scrape_error", "gauge", f"[ALPHA] {text}", failed),
    )


def _values(
    points: Sequence[_Point], value: Callable[[Reading], float | None]
) -> list[tuple[float | None, dict[str, str], int | None]]:
    """One figure of each reading, with the reading's time in Unix milliseconds."""
    return [(value(usage), labels, usage.time // 1_000_000) for usage, labels in points]


def _working_set(usage: Reading) -> float | None:
    return usage.working_set


def _cpu_seconds(usage: Reading) -> float | None:
    return None if usage.cpu is None else usage.cpu / 1e9


def _family(
    subject: str,
    words: tuple[str, str, str],
    values: Sequence[tuple[float | None, dict[str, str], int | None]],
) -> Family:
    """One metric of a subject; things without a value are left out."""
    name, kind, text = words
    samples = tuple(Sample(value, labels, time) for value, labels, time in values if value is not None)
    return Family(f"{subject}_{name}", kind, text.format(subject), samples)


def from_cri(stats: Any, started: float) -> ContainerReading:
    """A reading from a CRI ContainerStats; `started` in Unix seconds."""
    labels = stats.attributes.labels
    has_cpu = stats.HasField("cpu") and stats.cpu.HasField("usage_core_nano_seconds")
    has_memory = stats.HasField("memory") and stats.memory.HasField("working_set_bytes")
    return ContainerReading(
        namespace=labels.get("io.kubernetes.pod.namespace", ""),
        pod=labels.get("io.kubernetes.pod.name", ""),
        uid=labels.get("io.kubernetes.pod.uid", ""),
        container=labels.get("io.kubernetes.container.name", stats.attributes.metadata.name),
        usage=Reading(
            time=stats.cpu.timestamp or stats.memory.timestamp,
            cpu=stats.cpu.usage_core_nano_seconds.value if has_cpu else None,
            working_set=stats.memory.working_set_bytes.value if has_memory else None,
            started=started,
        ),
    )


def cadvisor_metrics(containers: Sequence[ContainerReading], pods: Sequence[Pod]) -> tuple[Family, ...]:
    """CPU and memory of containers under cAdvisor's names, with the image as a label."""
    images = {
        (pod.metadata.uid, status.name): status.image
        for pod in pods
        for status in pod.status.container_statuses
    }

    def labels(item: ContainerReading) -> dict[str, str]:
        return {**_labels(item), "image": images.get((item.uid, item.container), "")}

    def family(name: str, kind: str, help: str, values: Sequence[float | None]) -> Family:
        pairs = zip(containers, values, strict=True)
        samples = (
            Sample(value, labels(item), item.usage.time // 1_000_000)
            for item, value in pairs
            if value is not None
        )
        return Family(name, kind, help, tuple(samples))

    cpu = [None if item.usage.cpu is None else item.usage.cpu / 1e9 for item in containers]
    memory = [item.usage.working_set for item in containers]
    return (
        family("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed", cpu),
        family("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", memory),
        family("container_memory_usage_bytes", "gauge", "Current memory usage in bytes.", memory),
    )


def _labels(reading: ContainerReading) -> dict[str, str]:
    return {"container": reading.container, "namespace": reading.namespace, "pod": reading.pod}


def _pods(containers: Sequence[ContainerReading]) -> dict[tuple[str, str, str], Reading]:
    """Pods' usage as the sum of their containers', at the time of the oldest of them."""
    result: dict[tuple[str, str, str], Reading] = {}
    for item in containers:
        key = (item.namespace, item.pod, item.uid)
        before = result.get(key)
        usage = item.usage
        if before is not None:
            usage = Reading(
                time=min(before.time, usage.time),
                cpu=(before.cpu or 0) + (usage.cpu or 0),
                working_set=(before.working_set or 0) + (usage.working_set or 0),
                started=min(before.started, usage.started),
            )
        result[key] = usage
    return result


def summary(
    node_name: str, node: Reading, containers: Sequence[ContainerReading], *, filesystem: dict[str, int]
) -> JSON:
    """The body of /stats/summary: CPU, memory and the node's file system."""
    pods = _pods(containers)
    return {
        "node": {
            "nodeName": node_name,
            "startTime": format_time(node.started),
            "cpu": _cpu(node),
            "memory": _memory(node),
            "fs": {"time": format_time(node.time / 1e9), **filesystem},
        },
        "pods": [
            {
                "podRef": {"name": pod, "namespace": namespace, "uid": uid},
                "startTime": format_time(usage.started),
                "cpu": _cpu(usage),
                "memory": _memory(usage),
                "containers": [
                    {
                        "name": item.container,
                        "startTime": format_time(item.usage.started),
                        "cpu": _cpu(item.usage),
                        "memory": _memory(item.usage),
                    }
                    for item in containers
                    if item.uid == uid
                ],
            }
            for (namespace, pod, uid), usage in pods.items()
        ],
    }


def _cpu(usage: Reading) -> JSON:
    return {"time": format_time(usage.time / 1e9), "usageCoreNanoSeconds": usage.cpu or 0}


def _memory(usage: Reading) -> JSON:
    return {"time": format_time(usage.time / 1e9), "workingSetBytes": usage.working_set or 0}
