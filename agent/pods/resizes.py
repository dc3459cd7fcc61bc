"""Resizes of all pods of the node: what is asked, what fits, what waits (KEP-1287).

A worker runs its pod as granted. A changed spec that asks for other resources is granted when the node has
room beside what the other pods were granted, else it waits as Deferred, and is looked at again whenever a pod
has ended, another resize was granted, or some time has passed; or it is Infeasible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from agent.api.structs import Pod
from agent.pods.allocation import DEFERRED, Allocations, asked, granted, refusal, summary, urgency
from agent.pods.status_resize import PendingResize
from agent.pods.worker import TERMINAL, PodWorker
from agent.resources.admission import NodeFacts
from host.clocks import Clock

Say = Callable[[Pod, str, str, str], None]
"""Records an event about a pod: type, reason, message."""


class Resizes:
    """Grants and refuses resizes.

    Args:
        active: the workers whose pods hold resources of the node.
        node: the node as admission sees it.
    """

    def __init__(
        self,
        allocations: Allocations,
        *,
        active: Callable[[], Iterable[PodWorker]],
        node: Callable[[], NodeFacts],
        clock: Clock,
        say: Say,
    ) -> None:
        self._allocations = allocations
        self._active = active
        self._node = node
        self._clock = clock
        self._say = say

    def admitted(self, pod: Pod) -> None:
        """A pod was taken: it is granted what it asks for, unless it was granted something before."""
        if self._allocations.of(pod) == asked(pod):
            self._allocations.grant(pod)

    def view(self, pod: Pod) -> Pod:
        """The pod as it was granted."""
        return granted(pod, self._allocations.of(pod))

    def forget(self, uid: str) -> None:
        """The pod is gone."""
        self._allocations.forget(uid)

    def update(self, worker: PodWorker, pod: Pod) -> None:
        """A newer version of a pod's object."""
        worker.update(self.view(pod), desired=pod)
        if pod.status.phase in TERMINAL:
            self.retry()
        if asked(pod) == self._allocations.of(pod):
            worker.memory.pending = None
        elif worker.memory.stop is None:
            self.retry(worker)

    def retry(self, first: PodWorker | None = None) -> None:
        """Look again at what waits, and at one pod in any case."""
        workers = [w for w in self._active() if w is first or _waits(w)]
        workers.sort(key=lambda w: urgency(w.desired, self._allocations.of(w.desired), _since(w)))
        for worker in workers:
            self._decide(worker)

    def _decide(self, worker: PodWorker) -> None:
        pod, memory = worker.desired, worker.memory
        others = [w.pod for w in self._active() if w is not worker]
        refused = refusal(pod, others, self._node())
        generation = pod.metadata.generation
        if refused is None:
            self._allocations.grant(pod)
            memory.pending, memory.resized = None, generation
            self._say(pod, "Normal", "ResizeStarted", f"Pod resize started: {summary(pod)}")
            worker.update(pod, desired=pod)
            return
        before = memory.pending
        told = before is not None and (before.reason, before.generation) == (refused.reason, generation)
        since = before.since if before is not None else self._clock.monotonic()
        memory.pending = PendingResize(
            reason=refused.reason, message=refused.message, generation=generation, since=since
        )
        if not told:
            words = f"Pod resize {refused.reason}: {summary(pod, error=refused.message)}"
            self._say(pod, "Warning", f"Resize{refused.reason}", words)
        if before != memory.pending:
            worker.poke()


def _waits(worker: PodWorker) -> bool:
    return worker.memory.pending is not None and worker.memory.pending.reason == DEFERRED


def _since(worker: PodWorker) -> float:
    return worker.memory.pending.since if worker.memory.pending is not None else float("inf")
