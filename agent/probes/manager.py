"""Runs the probes of every container of this node and reports decisions.

One task per probe, none per container or pod; a slow or hung probe delays nobody else. The manager knows nothing
of pods' lives: the caller adds a container when it runs and removes it when it stopped or must no longer be
measured. Thresholds are in `agent.probes.state`, the measurements in one file each (`exec`, `http`, `tcp`,
`grpc`). Not for: deciding what happens to a pod, and writing events; both belong to the callbacks' owner.

Gating: with a startup probe, readiness and liveness start (at once, not a period later) when it has succeeded;
after that the startup probe never runs again. Readiness without a readiness probe is simply "started".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.probes.state import Kind
from host.clocks import Clock

if TYPE_CHECKING:
    from agent.api.structs import Container, Pod

ExecSync = Callable[[str, Sequence[str], float], Awaitable[tuple[int, bytes]]]
"""`await exec_sync(container_id, argv, timeout_seconds) -> (exit code, output)`; TimeoutError when time ran out."""


@dataclass(frozen=True)
class ProbeResult:
    """A decision (the thresholds were reached), not a single measurement.

    Attributes:
        pod_uid, container, container_id: whose probe.
        kind: which of the three.
        ok: the new state.
        message: for a failure the text kubelet prints, such as
            "Readiness probe failed: HTTP probe failed with statuscode: 500"; empty for a success.
    """

    pod_uid: str
    container: str
    container_id: str
    kind: Kind
    ok: bool
    message: str = ""


@dataclass(frozen=True)
class ProbeFailure:
    """One failed (or impossible) measurement, for the event "Unhealthy" and for logs; no decision."""

    pod: Pod
    container: str
    container_id: str
    kind: Kind
    message: str


class ProbeManager:
    """All probes of a node.

    Args:
        clock: time; durations use its monotonic side.
        exec_sync: runs a command in a container, see `ExecSync`.
        on_result: called in the event loop at every *change* of a probe's state, and at the first decision.
            Must not block.
        on_failure: called at every failed measurement, before `on_result`.
        random: uniform numbers in [0, 1), for the spread of first runs after an agent restart.

    The constructor does nothing. `run()` owns the tasks: it returns only when cancelled, with all of them ended.
    `add` and `remove` may be called before `run`.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        exec_sync: ExecSync,
        on_result: Callable[[ProbeResult], None],
        on_failure: Callable[[ProbeFailure], None] | None = None,
        random: Callable[[], float] | None = None,
    ) -> None: ...

    async def run(self) -> None:
        """Own the probe tasks until cancelled."""

    def add(
        self,
        pod: Pod,
        container: Container,
        *,
        container_id: str,
        pod_ip: str,
        started_at: float,
        known: Mapping[Kind, bool] | None = None,
    ) -> None:
        """Begin to probe a running container. A second call for the same `container_id` does nothing.

        Args:
            pod: for the pod's UID, host network IP, names in messages and probe-level settings.
            container: its spec with `startup_probe`, `readiness_probe`, `liveness_probe`, `ports`.
            container_id: the runtime's id of this run of the container.
            pod_ip: where httpGet, tcpSocket and grpc probes go unless the probe names a host.
            started_at: when the container started, unix seconds; `initialDelaySeconds` counts from here.
            known: given only for a container that was running before this agent started: the states it last
                had (from the pod's status in the API or from disk). Keeps Ready from flapping, and spreads the
                first run over one period.
        """

    def remove(self, container_id: str) -> None:
        """Stop probing a container and forget it; unknown ids are fine."""

    def remove_pod(self, pod_uid: str) -> None:
        """Stop probing every container of a pod."""

    def stop_readiness_gating(self, container_id: str) -> None:
        """Stop only startup and liveness probes: the pod is terminating, readiness goes on (kubelet does so)."""

    def started(self, container_id: str) -> bool:
        """Whether the container counts as started: no startup probe, or it has succeeded. False if unknown."""

    def ready(self, container_id: str) -> bool:
        """Whether the container counts as ready: started, and its readiness probe (if any) is ok."""

    def alive(self, container_id: str) -> bool:
        """False only when liveness or startup has decided that the container must be killed."""

    def states(self, container_id: str) -> Mapping[Kind, bool]:
        """Decided states by kind, to be persisted and given back as `known` after a restart."""
