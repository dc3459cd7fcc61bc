"""The slow things under way for one pod: one task a job, which its worker starts and which wakes it after.

A job's key says what it is about ("pull:app", "sandbox"), and there is one of a key at a time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable

from agent.api.structs import Pod
from agent.pods import actions, spec
from agent.pods.executor import Executor, JobFailed
from agent.pods.memory import Memory
from agent.pods.perform import failure_of, perform

log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Job:
    task: asyncio.Task[None]
    began: float
    aim: float | None
    yields: bool
    """Whether it may be cancelled when the pod has to stop: it only waits, or is repeated safely."""


class Jobs:
    """The jobs of one pod.

    Args:
        executor: does them.
        memory: where their results go, failures too.
        pod: the pod as it is when a job begins.
        wake: called after each one.
    """

    def __init__(
        self, executor: Executor, *, memory: Memory, pod: Callable[[], Pod], wake: Callable[[], None]
    ) -> None:
        self._executor = executor
        self._ports = executor.ports
        self._memory = memory
        self._pod = pod
        self._wake = wake
        self._jobs: dict[str, _Job] = {}

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __contains__(self, key: str) -> bool:
        return key in self._jobs

    @property
    def began(self) -> dict[str, float]:
        """Keys of the jobs under way, and when each began (monotonic)."""
        return {key: job.began for key, job in self._jobs.items()}

    @property
    def aims(self) -> dict[str, float | None]:
        """Keys of the jobs under way, and when a kill among them is to have ended (monotonic)."""
        return {key: job.aim for key, job in self._jobs.items()}

    @property
    def starting(self) -> bool:
        """Whether a job is under way after which something of the pod may run, or has just ceased to."""
        return any(key == "sandbox" or key.startswith(("start:", "kill:")) for key in self._jobs)

    def cancel(self, key: str) -> None:
        """Cancel one job, if it is under way."""
        if key in self._jobs:
            self._jobs[key].task.cancel()

    def cancel_yielding(self) -> None:
        """Cancel what need not be waited for when the pod has to stop."""
        for job in list(self._jobs.values()):
            if job.yields:
                job.task.cancel()

    def drop(self) -> list[asyncio.Task[None]]:
        """Forget all jobs; their tasks, for the caller to cancel and await."""
        tasks = [job.task for job in self._jobs.values()]
        self._jobs.clear()
        return tasks

    def begin(self, action: actions.Job) -> None:
        """Start a job, unless it is under way already."""
        known = self._jobs.get(action.key)
        if known is not None:
            if not isinstance(action, actions.KillContainer):
                return
            # A shorter grace than the one under way: start over, without running the hook again.
            known.task.cancel()
            action = dataclasses.replace(action, hook=False)
        if isinstance(action, actions.KillContainer) and action.again:
            self._memory.again.add(action.id)
        aim = action.deadline if isinstance(action, actions.KillContainer) else None
        yields = isinstance(action, actions.PullImage | actions.PrepareVolumes)
        name = f"pod {self._pod().metadata.uid} {action.key}"
        task = asyncio.create_task(self._run(action), name=name)
        self._jobs[action.key] = _Job(task, self._ports.clock.monotonic(), aim, yields)

    async def _run(self, action: actions.Job) -> None:
        key, failures, pod = action.key, self._memory.failures, self._pod()
        began, timelines = self._ports.clock.monotonic(), self._ports.timelines
        try:
            await perform(self._executor, pod, action, self._memory)
            failures.pop(key, None)
            timelines.span(pod.metadata.uid, key, began=began)
        except JobFailed as exc:
            self._note_failure(key, exc, began)
        except Exception as exc:
            # As in the worker's loop: a mistake in one pod's job stays with that pod, and is told.
            log.exception("pod job failed pod=%s job=%s", spec.full_name(pod), key)
            self._executor.say(pod, "Warning", "FailedSync", f"{key}: {exc}")
            self._note_failure(key, JobFailed("FailedSync", str(exc), maximum=60.0), began)
        finally:
            current = self._jobs.get(key)
            if current is not None and current.task is asyncio.current_task():
                del self._jobs[key]
                self._wake()

    def _note_failure(self, key: str, exc: JobFailed, began: float) -> None:
        self._ports.timelines.span(self._pod().metadata.uid, key, began=began, failure=exc.message)
        failures, now = self._memory.failures, self._ports.clock.monotonic()
        failures[key] = failure_of(failures.get(key), exc, now)
