"""Runs the probes of every container of this node and reports decisions.

One task per probe, none per container or pod; a slow or hung probe delays nobody else. The manager knows
nothing of pods' lives: the caller adds a container when it runs and removes it when it stopped or must no
longer be measured. Thresholds are in `agent.probes.state`, the measurements in one file each (`exec`, `http`,
`tcp`, `grpc`). Not for: deciding what happens to a pod, and writing events; both belong to the callbacks'
owner.

Gating: with a startup probe, readiness and liveness start (at once, not a period later) when it has
succeeded; after that the startup probe never runs again. Readiness without a readiness probe is simply
"started".
"""

from __future__ import annotations

import asyncio
import logging
import random as random_module
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.probes.exec import measure_exec
from agent.probes.grpc import measure_grpc
from agent.probes.http import measure_http
from agent.probes.measure import ExecSync, Measurement, Target, Unmeasurable
from agent.probes.state import Kind, Outcome, State, Thresholds, initial, step
from agent.probes.tcp import measure_tcp
from host.clocks import Clock

if TYPE_CHECKING:
    from agent.api.structs import Container, Pod, Probe

__all__ = ["ExecSync", "Kind", "ProbeFailure", "ProbeManager", "ProbeResult"]

_log = logging.getLogger(__name__)
_TRIES = 3
"""How often a probe that could not run is tried at once before its turn counts as unknown (kubelet: 3)."""


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
    """One measurement that people should hear of; no decision.

    Attributes:
        pod, container, container_id: whose probe.
        kind: which of the three.
        reason: the event's reason: "Unhealthy", or "ProbeWarning" for a success with a warning.
        message: the event's text.
    """

    pod: Pod
    container: str
    container_id: str
    kind: Kind
    reason: str
    message: str


@dataclass(frozen=True)
class ProbeStory:
    """How a probe stands, for people.

    Attributes:
        state: what is decided, and the run of equal outcomes.
        thresholds: how long a run has to be.
        text: what the last failure said; empty when the last outcome was none.
        measured: whether it has been measured at all; False during its initial delay.
    """

    state: State
    thresholds: Thresholds
    text: str = ""
    measured: bool = False


@dataclass
class _Watched:
    """One running container under probes."""

    pod: Pod
    target: Target
    ready_at: Mapping[Kind, float]
    adopted: bool
    states: dict[Kind, State] = field(default_factory=dict)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: dict[Kind, asyncio.Task[None]] = field(default_factory=dict)
    texts: dict[Kind, str] = field(default_factory=dict)
    """What the last measurement of each kind said; empty for a success."""


class ProbeManager:
    """All probes of a node.

    Args:
        clock: time; durations use its monotonic side.
        exec_sync: runs a command in a container, see `ExecSync`.
        on_result: called in the event loop at every *change* of a probe's state, and at the first decision.
            Must not block.
        on_failure: called at every failed measurement, before `on_result`. Must not block.
        random: uniform numbers in [0, 1), for the spread of first runs after an agent restart.

    The constructor does nothing. `add` and `remove` need a running event loop; `run()` ends all tasks when it
    is cancelled.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        exec_sync: ExecSync,
        on_result: Callable[[ProbeResult], None],
        on_failure: Callable[[ProbeFailure], None] | None = None,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._clock = clock
        self._exec_sync = exec_sync
        self._on_result = on_result
        self._on_failure = on_failure
        self._random = random
        self._watched: dict[str, _Watched] = {}

    async def run(self) -> None:
        """Wait until cancelled, then end every probe."""
        try:
            await asyncio.Event().wait()
        finally:
            tasks = [task for watched in self._watched.values() for task in watched.tasks.values()]
            self._watched.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

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
            pod: for the pod's UID and for events.
            container: its spec with `startup_probe`, `readiness_probe`, `liveness_probe`, `ports`, `env`.
            container_id: the runtime's id of this run of the container.
            pod_ip: where httpGet, tcpSocket and grpc probes go unless the probe names a host.
            started_at: when the container started, unix seconds; `initialDelaySeconds` counts from here.
            known: given only for a container that was running before this agent started: the states it last
                had (`{}` if nobody knows), from the pod's status in the API or from disk. Keeps Ready from
                flapping, and spreads the first runs over one period.
        """
        if container_id in self._watched:
            return
        probes = _probes(container)
        age = max(0.0, self._clock.now() - started_at)
        now = self._clock.monotonic()
        watched = _Watched(
            pod=pod,
            target=Target(container, container_id, pod_ip),
            ready_at={kind: now + probe.initial_delay_seconds - age for kind, probe in probes.items()},
            adopted=known is not None,
            states={kind: initial(kind, known=(known or {}).get(kind)) for kind in probes},
        )
        startup = watched.states.get(Kind.STARTUP)
        if startup is None or startup.ok:
            watched.started.set()
        self._watched[container_id] = watched
        for kind, probe in probes.items():
            if kind is Kind.STARTUP and watched.started.is_set():
                continue
            watched.tasks[kind] = asyncio.create_task(
                self._probe_forever(watched, kind, probe), name=f"probe {kind} {container.name}"
            )

    def remove(self, container_id: str) -> None:
        """Stop probing a container and forget it; unknown ids are fine."""
        watched = self._watched.pop(container_id, None)
        if watched is not None:
            for task in watched.tasks.values():
                task.cancel()

    def remove_pod(self, pod_uid: str) -> None:
        """Stop probing every container of a pod."""
        for container_id in self._of_pod(pod_uid):
            self.remove(container_id)

    def terminating(self, pod_uid: str) -> None:
        """A pod is being deleted: stop its startup and liveness probes; readiness goes on, as in kubelet."""
        for container_id in self._of_pod(pod_uid):
            watched = self._watched[container_id]
            for kind in (Kind.STARTUP, Kind.LIVENESS):
                task = watched.tasks.pop(kind, None)
                if task is not None:
                    task.cancel()

    def _of_pod(self, pod_uid: str) -> list[str]:
        return [key for key, watched in self._watched.items() if watched.pod.metadata.uid == pod_uid]

    def started(self, container_id: str) -> bool:
        """Whether the container has started: no startup probe, or it has succeeded. False for unknown ids."""
        watched = self._watched.get(container_id)
        return watched is not None and watched.started.is_set()

    def ready(self, container_id: str) -> bool:
        """Whether the container counts as ready: started, and its readiness probe (if any) is ok."""
        watched = self._watched.get(container_id)
        if watched is None or not watched.started.is_set():
            return False
        readiness = watched.states.get(Kind.READINESS)
        return readiness is None or readiness.ok

    def alive(self, container_id: str) -> bool:
        """False only when liveness or startup has decided that the container must be killed."""
        watched = self._watched.get(container_id)
        if watched is None:
            return True
        deciding = (watched.states.get(Kind.LIVENESS), watched.states.get(Kind.STARTUP))
        return not any(state is not None and state.decided and not state.ok for state in deciding)

    def states(self, container_id: str) -> Mapping[Kind, bool]:
        """Decided states by kind, to be persisted and given back as `known` after a restart."""
        watched = self._watched.get(container_id)
        if watched is None:
            return {}
        return {kind: state.ok for kind, state in watched.states.items() if state.decided}

    def stories(self, container_id: str) -> Mapping[Kind, ProbeStory]:
        """How each probe of a container stands; empty for unknown ids."""
        watched = self._watched.get(container_id)
        if watched is None:
            return {}
        probes = _probes(watched.target.container)
        return {
            kind: ProbeStory(
                state=state,
                thresholds=_thresholds(probes[kind]),
                text=watched.texts.get(kind, ""),
                measured=kind in watched.texts,
            )
            for kind, state in watched.states.items()
        }

    async def _probe_forever(self, watched: _Watched, kind: Kind, probe: Probe) -> None:
        """One probe's life: gate, delays, then a measurement every period until a final decision."""
        if kind is not Kind.STARTUP:
            await watched.started.wait()
        period = float(max(1, probe.period_seconds))
        if watched.adopted:
            await self._clock.sleep(self._random() * period)
        await self._clock.sleep(watched.ready_at[kind] - self._clock.monotonic())
        thresholds = _thresholds(probe)
        due = self._clock.monotonic()
        while True:
            measurement = await self._measure(watched, kind, probe)
            if self._take(watched, kind, measurement, thresholds):
                return
            due = max(due + period, self._clock.monotonic())
            await self._clock.sleep(due - self._clock.monotonic())

    def _take(self, watched: _Watched, kind: Kind, measurement: Measurement, thresholds: Thresholds) -> bool:
        """Count one measurement and report; whether this probe is over (the container's fate is decided)."""
        target = watched.target
        noteworthy = measurement.warning or measurement.outcome is not Outcome.SUCCESS
        if noteworthy and self._on_failure is not None:
            self._on_failure(_failure_of(watched, kind, measurement))
        watched.texts[kind] = "" if measurement.outcome is Outcome.SUCCESS else measurement.text
        old = watched.states[kind]
        new = watched.states[kind] = step(old, measurement.outcome, thresholds)
        if new.decided and (not old.decided or new.ok != old.ok):
            if kind is Kind.STARTUP and new.ok:
                watched.started.set()
            message = "" if new.ok else f"{kind} probe failed: {measurement.text}"
            self._on_result(
                ProbeResult(
                    pod_uid=watched.pod.metadata.uid,
                    container=target.container.name,
                    container_id=target.container_id,
                    kind=kind,
                    ok=new.ok,
                    message=message,
                )
            )
        if kind is Kind.STARTUP:
            return new.decided
        return kind is Kind.LIVENESS and new.decided and not new.ok

    async def _measure(self, watched: _Watched, kind: Kind, probe: Probe) -> Measurement:
        """One measurement; a probe that cannot run is tried a few times, then unknown."""
        reason = ""
        for _ in range(_TRIES):
            try:
                return await self._measure_once(watched.target, probe)
            except Unmeasurable as exc:
                reason = str(exc)
                break
            except Exception as exc:  # the runtime's and the transport's errors have no common type here
                reason = str(exc) or type(exc).__name__
                _log.warning(
                    "%s probe of container %s errored: %s",
                    kind,
                    watched.target.container.name,
                    reason,
                    exc_info=_log.isEnabledFor(logging.DEBUG),
                )
        return Measurement(Outcome.UNKNOWN, reason or "probe errored")

    async def _measure_once(self, target: Target, probe: Probe) -> Measurement:
        timeout = float(max(1, probe.timeout_seconds))
        if probe.exec is not None:
            return await measure_exec(probe.exec, target, timeout=timeout, exec_sync=self._exec_sync)
        if probe.http_get is not None:
            return await measure_http(probe.http_get, target, timeout=timeout)
        if probe.tcp_socket is not None:
            return await measure_tcp(probe.tcp_socket, target, timeout=timeout)
        if probe.grpc is not None:
            return await measure_grpc(probe.grpc, target, timeout=timeout)
        raise Unmeasurable(f"missing probe handler for container {target.container.name}")


def _probes(container: Container) -> dict[Kind, Probe]:
    by_kind = {
        Kind.STARTUP: container.startup_probe,
        Kind.READINESS: container.readiness_probe,
        Kind.LIVENESS: container.liveness_probe,
    }
    return {kind: probe for kind, probe in by_kind.items() if probe is not None}


def _thresholds(probe: Probe) -> Thresholds:
    return Thresholds(success=max(1, probe.success_threshold), failure=max(1, probe.failure_threshold))


def _failure_of(watched: _Watched, kind: Kind, measurement: Measurement) -> ProbeFailure:
    if measurement.warning:
        reason, message = "ProbeWarning", f"{kind} probe warning: {measurement.text}"
    elif measurement.outcome is Outcome.UNKNOWN:
        reason = "Unhealthy"
        message = f"{kind} probe errored and resulted in unknown state: {measurement.text}"
    else:
        reason, message = "Unhealthy", f"{kind} probe failed: {measurement.text}"
    return ProbeFailure(
        pod=watched.pod,
        container=watched.target.container.name,
        container_id=watched.target.container_id,
        kind=kind,
        reason=reason,
        message=message,
    )
