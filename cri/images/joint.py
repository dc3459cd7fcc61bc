"""Work that several callers want done once: the first starts it, the others wait for the same result."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any


class JointTasks:
    """Tasks by key. A task is cancelled when the last caller waiting for it is; errors reach all of them."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}
        self._waiting: dict[Hashable, int] = {}

    def running(self, key: Hashable) -> bool:
        """Whether somebody has started this work and it has not ended."""
        return key in self._tasks

    async def run(self, key: Hashable, work: Callable[[], Awaitable[Any]]) -> Any:
        """The result of `work`, or of the same work already under way."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.ensure_future(work())
            self._tasks[key] = task
            self._waiting[key] = 0
            task.add_done_callback(lambda done: self._forget(key, done))
        self._waiting[key] += 1
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done() and self._waiting.get(key) == 1:
                task.cancel()
                await asyncio.wait((task,))
            raise
        finally:
            if self._tasks.get(key) is task:
                self._waiting[key] -= 1

    async def close(self) -> None:
        """Cancel everything under way and wait for its end."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _forget(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
            del self._waiting[key]
        if not task.cancelled():
            task.exception()  # seen, so that a failure nobody waits for any more is not reported as lost
