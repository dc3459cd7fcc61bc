"""What every RPC works with, and the rule that a repeated request joins the one under way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cri.config import Settings
from cri.images.store import ImageStore
from cri.network import Network
from cri.runtime.client import Runtime
from cri.runtime.oci.handlers import Handler
from cri.server.events import EventBroker
from cri.server.usage import Rates
from cri.state.store import Store
from cri.streaming.tokens import Tokens
from host.cgroups import Cgroups
from host.clocks import Clock

log = logging.getLogger(__name__)

T = TypeVar("T")


class Joined:
    """Runs one operation a key at a time; a second caller gets the first one's outcome.

    The operation goes on when its caller gives up: a kubelet whose deadline passed asks again with the same
    words and must find the object, not a second one.
    """

    def __init__(self) -> None:
        """Nothing is under way."""
        self._tasks: dict[Any, asyncio.Task[Any]] = {}

    async def run(self, key: Any, work: Callable[[], Awaitable[T]]) -> T:
        """The outcome of `work`, or of the call with an equal key that is under way."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.ensure_future(_as_coroutine(work()))
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(task)

    def begin(self, key: Any, work: Callable[[], Awaitable[None]]) -> None:
        """Start what nobody waits for but `settle`; its failure is logged."""
        task = asyncio.ensure_future(_as_coroutine(work()))
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))

    def _ended(self, key: Any, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("%s: %s", " ".join(key), exc)

    def _forget(self, key: Any, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled():
            task.exception()  # marks it as seen: the caller may have gone

    async def settle(self, *key: str) -> None:
        """Wait until nothing is under way whose key begins with these words; without any, nothing at all."""
        while tasks := [task for name, task in self._tasks.items() if name[: len(key)] == key]:
            await asyncio.wait(tasks)


async def _as_coroutine(work: Awaitable[T]) -> T:
    return await work


@dataclass(frozen=True, kw_only=True)
class Core:
    """The parts an RPC may use. Handlers are functions of a core and a request."""

    settings: Settings
    store: Store
    runtime: Runtime
    images: ImageStore
    network: Network
    cgroups: Cgroups
    clock: Clock
    tokens: Tokens
    boot_id: str
    stream_url: str
    """Base address of streams, for instance http://127.0.0.1:34567."""
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    """External runtimes by the name a pod may ask for; our own has the empty name."""
    userns_missing: str = ""
    """What the kernel lacks for pods with user namespaces; empty: nothing."""
    events: EventBroker = field(default_factory=EventBroker)
    joined: Joined = field(default_factory=Joined)
    rates: Rates = field(default_factory=Rates)
    early_exits: dict[str, Any] = field(default_factory=dict)
    """Exits of containers whose StartContainer is still under way, by id."""

    def now(self) -> int:
        """Nanoseconds since 1970, as CRI has times."""
        return int(self.clock.now() * 1e9)
