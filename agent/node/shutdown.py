"""Graceful node shutdown: the pods are stopped in order before the machine goes down.

logind announces a shutdown and waits for whoever holds an inhibitor; we hold one, stop the pods, the least
important ones first, and let it go when their last status is with the API server. Only a shutdown of the
machine counts: an agent that is stopped (SIGTERM) leaves its pods running, as a kubelet does. Without logind
there is no such announcement, and pods end with the machine.

Source: KEP-2000, KEP-2712; k8s.io/kubernetes/pkg/kubelet/nodeshutdown (v1.37).
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.api.structs import Pod
from agent.resources.qos import CRITICAL_PRIORITY
from host.clocks import Clock
from host.errors import HostError, from_oserror
from host.files import write_atomic

log = logging.getLogger(__name__)
MESSAGE = "Pod was terminated in response to imminent node shutdown."
PROBLEM = "node is shutting down"
RECONNECT_SECONDS = 1.0
RELOAD_SECONDS = 2.0
"""How long logind may take to take over a new configuration."""
WRITE_SECONDS = 2.0
"""How long the last statuses may take to reach the API server."""
OVERRIDE = Path("/etc/systemd/logind.conf.d/99-nodelet.conf")


@dataclass(frozen=True)
class Stage:
    """Seconds that pods of this priority, up to the next stage's, get to stop."""

    priority: int
    seconds: int


def stages(*, all_pods: float, critical: float, by_priority: Iterable[Stage] = ()) -> tuple[Stage, ...]:
    """The stages of a configuration, in order; none when shutdowns are not to be held up.

    Args:
        all_pods, critical: shutdownGracePeriod, and the part of it that is for critical pods.
        by_priority: shutdownGracePeriodByPodPriority, which excludes those two.
    """
    given = sorted(by_priority, key=lambda stage: stage.priority)
    if given or all_pods <= 0:
        return tuple(given)
    return (Stage(0, int(all_pods - critical)), Stage(CRITICAL_PRIORITY, int(critical)))


def plan(given: Sequence[Stage], pods: Iterable[Pod]) -> list[tuple[Stage, list[Pod]]]:
    """Which pods stop in which stage; a priority below the lowest stage belongs to that one. Pure."""
    found: list[list[Pod]] = [[] for _ in given]
    priorities = [stage.priority for stage in given]
    for pod in pods:
        index = bisect.bisect_right(priorities, pod.spec.priority or 0) - 1
        found[max(0, index)].append(pod)
    return [(stage, group) for stage, group in zip(given, found, strict=True) if group]


class LogindPort(Protocol):
    """See host.logind.Logind."""

    def close(self) -> None: ...
    def fileno(self) -> int: ...
    def longest_delay(self) -> float: ...
    def inhibit(self, *, who: str, why: str) -> int: ...
    def reload(self) -> None: ...
    def shutdowns(self) -> list[bool]: ...


class PodPort(Protocol):
    """What is asked of the pods component (see agent.pods.ending.PodEnding)."""

    def active(self) -> list[Pod]: ...
    def terminate(self, pod: Pod, text: str, *, grace: int) -> None: ...
    async def ended(self, pods: Sequence[Pod], *, timeout: float) -> bool: ...
    async def reported(self, *, timeout: float) -> bool: ...


class ShutdownManager:
    """Holds the inhibitor and stops the pods. `run()` until cancelled.

    Args:
        connect: opens a connection to logind; raises HostError.
        say: records an event about the node: reason and message.
        on_change: called when `shutting_down` has changed.
        override: the file that raises logind's InhibitDelayMaxSec where it is too short.
    """

    def __init__(
        self,
        given: Sequence[Stage],
        *,
        connect: Callable[[], LogindPort],
        pods: PodPort,
        clock: Clock,
        say: Callable[[str, str], None],
        on_change: Callable[[], None],
        override: Path = OVERRIDE,
    ) -> None:
        self.shutting_down = False
        self._stages = tuple(given)
        self._connect = connect
        self._pods = pods
        self._clock = clock
        self._say = say
        self._on_change = on_change
        self._override = override
        self._lock: int | None = None

    async def run(self) -> None:
        """Watch for shutdowns; a connection that is lost is made again."""
        try:
            while self._stages:
                connected = False
                try:
                    logind = await asyncio.to_thread(self._connect)
                    connected = True
                    await self._follow(logind)
                except HostError as exc:
                    if not connected:
                        log.warning("shutdowns of the machine are not held up error=%s", exc)
                        break
                    log.warning("connection to logind lost error=%s", exc)
                await self._clock.sleep(RECONNECT_SECONDS)
            await asyncio.Event().wait()
        finally:
            self._release()

    async def _follow(self, logind: LogindPort) -> None:
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        try:
            await self._ensure_delay(logind)
            await self._inhibit(logind)
            loop.add_reader(logind.fileno(), readable.set)
            try:
                readable.set()  # a signal may have come between the answers
                while True:
                    await readable.wait()
                    readable.clear()
                    for begins in logind.shutdowns():
                        await self._announced(logind, begins)
            finally:
                loop.remove_reader(logind.fileno())
        finally:
            logind.close()

    async def _ensure_delay(self, logind: LogindPort) -> None:
        """logind must be willing to wait as long as all stages take together.

        Raises:
            HostError: it cannot be asked, or its configuration cannot be written.
        """
        needed = sum(stage.seconds for stage in self._stages)
        delay = await asyncio.to_thread(logind.longest_delay)
        if delay >= needed:
            return
        await asyncio.to_thread(self._write_override, needed)
        await asyncio.to_thread(logind.reload)
        end = self._clock.monotonic() + RELOAD_SECONDS
        # Nothing tells when it has read the file.
        while (delay := await asyncio.to_thread(logind.longest_delay)) < needed:
            if self._clock.monotonic() >= end:
                log.warning(
                    "logind delays a shutdown by %s s at most, shutdownGracePeriod is %s s: "
                    "set InhibitDelayMaxSec in logind.conf",
                    delay,
                    needed,
                )
                return
            await self._clock.sleep(0.1)

    def _write_override(self, seconds: int) -> None:
        try:
            self._override.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise from_oserror(exc, f"make {self._override.parent}") from exc
        text = f"# nodelet: shutdownGracePeriod takes that long.\n[Login]\nInhibitDelayMaxSec={seconds}\n"
        write_atomic(self._override, text.encode(), mode=0o644)

    async def _inhibit(self, logind: LogindPort) -> None:
        why = "Kubelet needs time to handle node shutdown"
        lock = await asyncio.to_thread(lambda: logind.inhibit(who="kubelet", why=why))
        self._release()
        self._lock = lock

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    async def _announced(self, logind: LogindPort, begins: bool) -> None:
        word = "event" if begins else "cancellation"
        self._say("NodeShutdown", f"Shutdown manager detected shutdown {word}")
        self.shutting_down = begins
        self._on_change()
        if begins:
            try:
                await self.stop_pods()
            finally:
                self._release()
        else:
            await self._inhibit(logind)

    async def stop_pods(self) -> None:
        """Stop all pods, stage by stage, and wait until the API server knows."""
        for stage, pods in plan(self._stages, self._pods.active()):
            log.info("stopping pods for the shutdown count=%s seconds=%s", len(pods), stage.seconds)
            for pod in pods:
                self._pods.terminate(pod, MESSAGE, grace=stage.seconds)
            if not await self._pods.ended(pods, timeout=float(stage.seconds)):
                log.warning("pods are not stopped in time priority=%s", stage.priority)
        if not await self._pods.reported(timeout=WRITE_SECONDS):
            log.warning("the last statuses have not reached the API server")
