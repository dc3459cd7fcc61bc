"""Keeps volumes in step with the objects they show: ConfigMaps, Secrets, the pod itself, tokens.

A change is written at once. One that could not be written (the API is away, the disk is full) is tried again
every `CHECK` seconds, which is also how often tokens are looked at; the old content stays meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from agent.volumes.base import VolumeError
from host.clocks import Clock

if TYPE_CHECKING:
    from agent.api.structs import Pod

_log = logging.getLogger(__name__)
CHECK = 30.0


class Follower:
    """One refresh at a time for each pod; what changes meanwhile is written after it.

    Args:
        refresh: rewrites the live volumes of a pod; raises VolumeError.
        due: the pods whose volumes need a look without any change.
        clock: time.
    """

    def __init__(
        self, *, refresh: Callable[[Pod], Awaitable[object]], due: Callable[[], list[Pod]], clock: Clock
    ) -> None:
        self._refresh = refresh
        self._due = due
        self._clock = clock
        self._changed: dict[str, Pod] = {}
        self._failed: dict[str, Pod] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def changed(self, pod: Pod) -> None:
        """Something that this pod's volumes show has changed."""
        uid = pod.metadata.uid
        self._changed[uid] = pod
        self._failed.pop(uid, None)
        if uid not in self._tasks:
            self._tasks[uid] = asyncio.create_task(self._follow(uid), name=f"refresh {pod.metadata.name}")

    def later(self, pod: Pod) -> None:
        """This pod's volumes show what they did before, because nobody could be asked."""
        self._failed[pod.metadata.uid] = pod

    def forget(self, uid: str) -> None:
        """The pod ends."""
        self._changed.pop(uid, None)
        self._failed.pop(uid, None)

    async def run(self) -> None:
        """Look after tokens and failures until cancelled."""
        try:
            while True:
                await self._clock.sleep(CHECK)
                for pod in [*self._failed.values(), *self._due()]:
                    self.changed(pod)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _follow(self, uid: str) -> None:
        try:
            while (pod := self._changed.pop(uid, None)) is not None:
                try:
                    await self._refresh(pod)
                except VolumeError as exc:
                    self._failed[uid] = pod
                    meta = pod.metadata
                    _log.warning("volume not refreshed pod=%s/%s error=%s", meta.namespace, meta.name, exc)
        finally:
            del self._tasks[uid]
