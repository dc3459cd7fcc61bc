"""What the runtime holds, kept up to date by its events; a slow relist is only the net below.

One stream of container events serves all pods: each event carries the pod's state, so only that pod's facts
are touched and only its worker is woken. After every (re)connection everything is listed once, because what
happened in between was told to nobody. A pod whose runtime calls hang delays neither the stream nor another
pod.

Facts about removed containers are remembered as tombstones for a while: an event that was on its way when
the removal was confirmed must not bring the container back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from typing import Protocol

import grpc

from agent.pods.convert import Event
from agent.pods.facts import ContainerFact, PodFacts, SandboxFact, merge, without
from agent.pods.runtime import RuntimeFailure
from host.clocks import Clock

log = logging.getLogger(__name__)
_TOMBSTONES = 10_000
_RECONNECT = 0.2
_WITHOUT_EVENTS = 1.0


class ObservedRuntime(Protocol):
    """The runtime calls that observing needs."""

    def events(self) -> AsyncIterator[Event]: ...
    async def pods(self) -> dict[str, PodFacts]: ...


class Observer:
    """The facts of every pod, by uid. `on_change(uid)` is called in the event loop and must not block."""

    def __init__(
        self,
        *,
        runtime: ObservedRuntime,
        clock: Clock,
        on_change: Callable[[str], None],
        relist_seconds: float = 60.0,
    ) -> None:
        self._runtime = runtime
        self._clock = clock
        self._on_change = on_change
        self._relist_seconds = relist_seconds
        self._pods: dict[str, PodFacts] = {}
        self._tombstones: OrderedDict[str, None] = OrderedDict()
        self._learned: dict[str, float] = {}
        self._complaints: set[str] = set()
        """Told since the last complete list."""
        self.synced = asyncio.Event()
        """Set after the first complete list."""

    def of(self, uid: str) -> PodFacts:
        """What is known of a pod; empty facts when nothing is."""
        return self._pods.get(uid) or PodFacts(uid=uid)

    def uids(self) -> set[str]:
        """Pods of which the runtime holds anything."""
        return {uid for uid, facts in self._pods.items() if not facts.empty}

    def learn(
        self,
        uid: str,
        *,
        sandboxes: Iterable[SandboxFact] = (),
        containers: Iterable[ContainerFact] = (),
        namespace: str = "",
        name: str = "",
    ) -> None:
        """Add what a call just told; wakes the pod's worker when something is new."""
        boxes = [s for s in sandboxes if s.id not in self._tombstones]
        cons = [c for c in containers if c.id not in self._tombstones]
        now = self._clock.monotonic()
        self._learned.update(dict.fromkeys([*(s.id for s in boxes), *(c.id for c in cons)], now))
        old = self._pods.get(uid) or PodFacts(uid=uid, namespace=namespace, name=name)
        new = merge(old, sandboxes=boxes, containers=cons)
        self._pods[uid] = new
        if new != old:
            self._on_change(uid)

    def sandbox_stopped(self, uid: str, sandbox_id: str) -> None:
        """Note that a sandbox was stopped, before the runtime's own event says so."""
        stopped = [replace(s, ready=False) for s in self.of(uid).sandboxes if s.id == sandbox_id]
        if stopped:
            self.learn(uid, sandboxes=stopped)

    def forget(self, uid: str, ids: Iterable[str]) -> None:
        """Drop removed sandboxes (with their containers) and containers."""
        gone = list(ids)
        for key in gone:
            self._tombstones[key] = None
            self._learned.pop(key, None)
        while len(self._tombstones) > _TOMBSTONES:
            self._tombstones.popitem(last=False)
        facts = self._pods.get(uid)
        if facts is None:
            return
        rest = without(facts, gone)
        kept = {c.id for c in rest.containers}
        for container in facts.containers:
            if container.id not in kept:
                self._learned.pop(container.id, None)
        if rest.empty:
            del self._pods[uid]
        else:
            self._pods[uid] = rest
        self._on_change(uid)

    async def run(self) -> None:
        """Follow the runtime until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="container events")
            group.create_task(self._relist_forever(), name="relist")

    async def _follow(self) -> None:
        while True:
            relist = asyncio.create_task(self._relist_quietly())
            try:
                async for event in self._runtime.events():
                    self._take(event)
            except RuntimeFailure as exc:
                if exc.code is grpc.StatusCode.UNIMPLEMENTED:
                    log.warning("runtime has no container events, listing every %s s", _WITHOUT_EVENTS)
                    self._relist_seconds = _WITHOUT_EVENTS
                    await relist
                    return
                self._complain(f"container events interrupted error={exc}")
            finally:
                if not relist.done():
                    relist.cancel()
            await self._clock.sleep(_RECONNECT)

    def _take(self, event: Event) -> None:
        if event.pod is None:
            return  # the next relist tells; our own runtime always sends the state
        uid = event.pod.uid
        self.learn(
            uid,
            sandboxes=event.pod.sandboxes,
            containers=event.pod.containers,
            namespace=event.pod.namespace,
            name=event.pod.name,
        )
        if event.deleted and event.pod.container(event.id) is None:
            self.forget(uid, [event.id])

    async def _relist_forever(self) -> None:
        while True:
            await self._clock.sleep(self._relist_seconds)
            await self._relist_quietly()

    async def _relist_quietly(self) -> None:
        try:
            await self.relist()
        except RuntimeFailure as exc:
            self._complain(f"relist failed error={exc}")

    def _complain(self, text: str) -> None:
        """Log what is wrong once, not at every try."""
        if text not in self._complaints:
            self._complaints.add(text)
            log.warning("%s", text)

    async def relist(self) -> None:
        """Compare with the runtime's complete lists. Raises RuntimeFailure, and then changes nothing."""
        began = self._clock.monotonic()
        listed = await self._runtime.pods()
        self._complaints.clear()
        for uid, facts in listed.items():
            self.learn(
                uid,
                sandboxes=facts.sandboxes,
                containers=facts.containers,
                namespace=facts.namespace,
                name=facts.name,
            )
        for uid, known in list(self._pods.items()):
            there = listed.get(uid) or PodFacts(uid=uid)
            ids = {s.id for s in there.sandboxes} | {c.id for c in there.containers}
            have = [s.id for s in known.sandboxes] + [c.id for c in known.containers]
            # What was learned after the list began may be too young to be on it.
            missing = [i for i in have if i not in ids and self._learned.get(i, began) < began]
            if missing:
                self.forget(uid, missing)
        self.synced.set()
