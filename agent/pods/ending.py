"""Ending pods for the node's sake: eviction and the node's own shutdown. `PodManager.ending` is the way in.

A pod that is ended this way becomes Failed with the reason given, and stays in the API, unlike a deleted one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from agent.api.structs import Pod
from agent.pods.executor import Executor, within
from agent.pods.status import Verdict
from agent.pods.worker import TERMINAL, PodWorker
from host.clocks import Clock


class PodEnding:
    """Ends pods of one node, over the workers the pods component has."""

    def __init__(self, workers: Mapping[str, PodWorker], *, executor: Executor, clock: Clock) -> None:
        self._workers = workers
        self._executor = executor
        self._clock = clock

    def active(self) -> list[Pod]:
        """Pods that have neither ended nor been told to."""
        return [
            worker.pod
            for worker in self._workers.values()
            if not worker.removed
            and worker.memory.stop is None
            and worker.memory.verdict is None
            and worker.memory.status.phase not in TERMINAL
        ]

    def evict(self, pod: Pod, text: str, *, grace: int, disruption: bool) -> None:
        """End the pod as Evicted; `text` is the message of status, condition and event.

        Args:
            grace: seconds it gets at most; negative: what it asks for.
            disruption: whether it goes for the node's sake and not for its own fault.
        """
        self._executor.say(pod, "Warning", "Evicted", text)
        limit = grace if grace >= 0 else None
        self.end(pod, Verdict(reason="Evicted", message=text, disruption=disruption, grace=limit))

    def terminate(self, pod: Pod, text: str, *, grace: int) -> None:
        """End the pod because the machine goes down; it gets that many seconds at most."""
        verdict = Verdict(reason="Terminated", message=text, disruption=True, grace=grace)
        self.end(pod, verdict)

    def end(self, pod: Pod, verdict: Verdict) -> None:
        """End the pod without a word of our own."""
        worker = self._workers.get(pod.metadata.uid)
        if worker is not None:
            worker.fail(verdict)

    async def ended(self, pods: Sequence[Pod], *, timeout: float) -> bool:
        """Wait until nothing of these pods runs, is mounted or has a cgroup; False when it takes longer."""
        workers = [w for pod in pods if (w := self._workers.get(pod.metadata.uid)) is not None]
        try:
            await within(self._clock, timeout, asyncio.gather(*(worker.ended.wait() for worker in workers)))
        except TimeoutError:
            return False
        return True

    async def reported(self, *, timeout: float) -> bool:
        """Wait until the API server has every status known now; False when it takes longer."""
        try:
            await within(self._clock, timeout, self._executor.ports.statuses.settled())
        except TimeoutError:
            return False
        return True
