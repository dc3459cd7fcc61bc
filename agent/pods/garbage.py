"""Container garbage collection: dead containers, with their logs, that nobody needs any more.

A pod's own plan keeps the last dead ones of each container and removes those before (`plan`). Here is what
concerns the whole node: a limit on all dead containers together, and the removal of all that can go when the
disk is short. The newest run of each container of a pod that goes on is kept even then, because the restart
policy decides by how it ended.

Source: k8s.io/kubernetes/pkg/kubelet/kuberuntime/kuberuntime_gc.go (v1.37).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from agent.api.structs import Pod
from agent.pods import actions
from agent.pods.executor import Executor, JobFailed
from agent.pods.facts import ContainerFact, PodFacts, State
from agent.pods.worker import TERMINAL, PodWorker

log = logging.getLogger(__name__)
PERIOD = 60.0
"""Seconds between two collections."""


def dispensable(facts: PodFacts, *, over: bool) -> list[ContainerFact]:
    """Dead containers that can go when the disk is short: all of a pod that is over, else the older runs."""
    dead = [fact for fact in facts.containers if fact.state is State.EXITED]
    if over:
        return dead
    return [fact for fact in dead if facts.latest(fact.name) is not fact]


def beyond_limit(pods: Iterable[tuple[PodFacts, bool]], *, limit: int, before: float) -> list[ContainerFact]:
    """Dead containers above the node's limit, the oldest first. Those that cannot go count as well.

    Args:
        pods: facts of each pod, and whether the pod is over.
        limit: how many dead containers may stay.
        before: when a container must have ended to be removed, in Unix seconds.
    """
    found = [(facts, over) for facts, over in pods]
    total = sum(fact.state is State.EXITED for facts, _ in found for fact in facts.containers)
    able = [
        fact for facts, over in found for fact in dispensable(facts, over=over) if fact.finished_at <= before
    ]
    able.sort(key=lambda fact: fact.finished_at)
    return able[: max(0, total - limit)]


class ContainerCollector:
    """Collects dead containers, over the workers the pods component has. `run()` until cancelled."""

    def __init__(
        self,
        workers: Mapping[str, PodWorker],
        *,
        executor: Executor,
    ) -> None:
        self._workers = workers
        self._observer = executor.ports.observer
        self._executor = executor
        self._clock = executor.ports.clock
        self._limit = executor.ports.settings.dead_in_all
        self._age = executor.ports.settings.dead_minimum_age

    async def run(self) -> None:
        """Keep to the node's limit."""
        while self._limit >= 0:
            await self._clock.sleep(PERIOD)
            pods = [(self._observer.of(uid), _over(worker)) for uid, worker in self._workers.items()]
            before = self._clock.now() - self._age
            await self._remove(beyond_limit(pods, limit=self._limit, before=before))
        await asyncio.Event().wait()

    def images_in_use(self) -> set[str]:
        """Ids and names of the images of all containers, dead ones and those about to start included."""
        held = [
            name
            for uid in self._observer.uids()
            for fact in self._observer.of(uid).containers
            for name in (fact.image_id, fact.image_ref, fact.image)
        ]
        going_on = [worker for worker in self._workers.values() if not _over(worker)]
        wanted = [image.id for worker in going_on for image in worker.memory.images.values()]
        return {name for name in (*held, *wanted) if name}

    async def delete_dead(self) -> None:
        """Remove all that can go: the disk is short."""
        dead = [
            fact
            for uid, worker in self._workers.items()
            for fact in dispensable(self._observer.of(uid), over=_over(worker))
        ]
        await self._remove(dead)

    async def _remove(self, dead: Sequence[ContainerFact]) -> None:
        ids = {fact.id for fact in dead}
        for uid, worker in list(self._workers.items()):
            for fact in self._observer.of(uid).containers:
                if fact.id in ids:
                    await self._remove_one(worker.pod, fact)

    async def _remove_one(self, pod: Pod, fact: ContainerFact) -> None:
        try:
            await self._executor.remove_container(pod, actions.RemoveContainer(fact.id))
        except JobFailed as exc:
            log.warning("dead container not removed container=%s error=%s", fact.id, exc)


def _over(worker: PodWorker) -> bool:
    return worker.memory.status.phase in TERMINAL
