"""What the pods component counts for /metrics, under kubelet's names.

Source: pkg/kubelet/metrics/metrics.go (v1.37): the same names, labels and buckets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from agent.api.structs import Pod
from agent.api.times import parse_time
from agent.pods import spec
from agent.pods.facts import ContainerFact
from agent.server.exposition import Family, Histogram, Sample, counter

_START_BUCKETS = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60, 120, 180, 240, 300)


class PodMetrics:
    """Counts since this agent started. For one thread."""

    def __init__(self) -> None:
        self._started_pods = 0
        self._started = Counter[str]()
        self._durations = Histogram(_START_BUCKETS)
        self._since_creation = Histogram(_START_BUCKETS)

    def sandbox_started(self) -> None:
        """A pod got a sandbox."""
        self._started_pods += 1

    def container_started(self, pod: Pod, name: str) -> None:
        """A container was started, for the first time or again."""
        self._started[_kind(pod, name)] += 1

    def running(self, pod: Pod, *, seen_for: float, now: float) -> None:
        """A pod runs for the first time.

        Args:
            seen_for: seconds since this agent heard of it.
            now: Unix seconds.
        """
        self._durations.observe(seen_for)
        created = parse_time(pod.metadata.creation_timestamp)
        if created is not None:
            self._since_creation.observe(max(0.0, now - created))

    def families(self, containers: Iterable[ContainerFact]) -> tuple[Family, ...]:
        """All of it, with the containers that the runtime holds now."""
        states = Counter(each.state.name.lower() for each in containers)
        return (
            counter("kubelet_started_pods_total", "Cumulative number of pods started", self._started_pods),
            Family(
                "kubelet_started_containers_total",
                "counter",
                "Cumulative number of containers started",
                tuple(Sample(n, {"container_type": kind}) for kind, n in sorted(self._started.items())),
            ),
            Family(
                "kubelet_running_containers",
                "gauge",
                "Number of containers currently on the node, by their state",
                tuple(Sample(n, {"container_state": state}) for state, n in sorted(states.items())),
            ),
            Family(
                "kubelet_pod_start_duration_seconds",
                "histogram",
                "Seconds from the agent hearing of a pod to the pod running",
                self._durations.samples(),
            ),
            Family(
                "kubelet_pod_start_total_duration_seconds",
                "histogram",
                "Seconds from a pod's creation to the pod running, pulls and init containers included",
                self._since_creation.samples(),
            ),
        )


def _kind(pod: Pod, name: str) -> str:
    container = spec.find_container(pod, name)
    if container in pod.spec.init_containers:
        return "init_container"
    return "ephemeral_container" if container in pod.spec.ephemeral_containers else "container"
