"""Writes pod statuses to the API: one PATCH at a time a pod, the latest wins, retried until it is there.

A status that is only routine (still Pending, nothing to explain) may wait a moment, because a pod that
starts quickly makes it obsolete; everything else goes out at once. After the last status of a pod that is
gone from this node, its object is deleted with no grace, bound to its uid.

Each change that a person would want to know of is also a line of the log, which is all there is to read on a
node without an API.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from agent.api import errors
from agent.api.client import ApiClient
from agent.api.resources import PODS
from agent.api.structs import Pod, PodStatus
from agent.pods import spec
from agent.pods.restart import retry_delay
from agent.pods.status_patch import status_patch
from host.clocks import Clock, sleep_unless

log = logging.getLogger(__name__)
CONFLICTS = 3
"""Conflicts in a row after which the object counts as another one."""
ROUTINE_DELAY = 0.25
"""Seconds a routine status waits for a better one."""

_ROUTINE_REASONS = ("ContainerCreating", "PodInitializing")


@dataclass
class _Entry:
    target: Pod
    wanted: PodStatus | None = None
    written: PodStatus | None = None
    soon: asyncio.Event | None = None
    delete: bool = False
    task: asyncio.Task[None] | None = None
    problem: str = ""
    """Why the last attempt failed; empty when it did not."""


def _is_gone(exc: errors.ApiError, failures: int) -> bool:
    """Whether the object is gone, or a namesake with another uid is there; the watch tells the pod store.

    A conflict may also be the server's own race with another writer, which passes.
    """
    return isinstance(exc, errors.NotFound) or (isinstance(exc, errors.Conflict) and failures >= CONFLICTS)


def summary(status: PodStatus) -> str:
    """A status in a line of `key=value`, with the reason why a container waits or has ended."""
    found = status.container_statuses
    every = (*status.init_container_statuses, *found)
    words = [f"phase={status.phase}", f"ready={sum(c.ready for c in found)}/{len(found)}"]
    words += [f"ip={status.pod_ip}"] if status.pod_ip else []
    words += [f"restarts={count}"] if (count := sum(c.restart_count for c in every)) else []
    words += [f"reason={status.reason}"] if status.reason else []
    for container in every:
        state = container.state
        if state.waiting is not None and state.waiting.reason not in ("", *_ROUTINE_REASONS):
            words.append(f"{container.name}={state.waiting.reason}")
        if state.terminated is not None and state.terminated.exit_code:
            words.append(f"{container.name}={state.terminated.reason}({state.terminated.exit_code})")
    return " ".join(words)


class StatusWriter:
    """Statuses on their way to the API.

    Args:
        client: None for a node without an API: nothing is written then.
        target: the object a pod's status belongs to, by the pod's uid: itself, or the mirror of a static pod;
            None while there is none.
    """

    def __init__(
        self, *, client: ApiClient | None, clock: Clock, target: Callable[[Pod], Pod | None]
    ) -> None:
        self._client = client
        self._clock = clock
        self._target = target
        self._entries: dict[str, _Entry] = {}
        self._said: dict[str, str] = {}

    def put(self, pod: Pod, status: PodStatus, *, soon: bool) -> None:
        """Make this the pod's status; does nothing when it is written or on its way already."""
        self._say(pod, status)
        target = self._target(pod)
        if self._client is None or target is None:
            return
        uid = target.metadata.uid
        entry = self._entries.get(uid)
        if entry is None:
            entry = self._entries[uid] = _Entry(target, written=target.status)
        entry.target = target
        entry.wanted = status
        if status != entry.written or entry.task is not None:
            self._wake(entry, soon=soon)

    def finish(self, pod: Pod) -> None:
        """Delete the object once its last status is written."""
        target = self._target(pod)
        if self._client is None or target is None:
            return
        entry = self._entries.setdefault(
            target.metadata.uid, _Entry(target, wanted=target.status, written=target.status)
        )
        if not entry.delete:
            entry.delete = True
            self._wake(entry, soon=True)

    def forget(self, uid: str) -> None:
        """The object, or the manifest, is gone."""
        self._said.pop(uid, None)
        entry = self._entries.pop(uid, None)
        if entry is not None and entry.task is not None:
            entry.task.cancel()

    def problem(self, pod: Pod) -> str:
        """Why the API has not taken the pod's last status yet; empty when nothing keeps it."""
        target = self._target(pod)
        entry = self._entries.get(target.metadata.uid) if target is not None else None
        return entry.problem if entry is not None else ""

    async def close(self) -> None:
        """Stop writing."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def settled(self) -> None:
        """Return when nothing waits to be written."""
        while tasks := [entry.task for entry in self._entries.values() if entry.task is not None]:
            for entry in self._entries.values():
                if entry.soon is not None:
                    entry.soon.set()
            await asyncio.wait(tasks)

    def _say(self, pod: Pod, status: PodStatus) -> None:
        words = summary(status)
        if self._said.get(pod.metadata.uid) != words:
            self._said[pod.metadata.uid] = words
            log.info("pod status pod=%s %s", spec.full_name(pod), words)

    def _wake(self, entry: _Entry, *, soon: bool) -> None:
        if entry.task is None:
            entry.soon = asyncio.Event()
            name = f"status {entry.target.metadata.uid}"
            entry.task = asyncio.create_task(self._write(entry), name=name)
        if soon and entry.soon is not None:
            entry.soon.set()

    async def _write(self, entry: _Entry) -> None:
        """Write until nothing newer is wanted, then delete if asked to."""
        assert entry.soon is not None
        failures = 0
        try:
            if not entry.soon.is_set():
                await sleep_unless(self._clock, entry.soon, ROUTINE_DELAY)
            while entry.wanted != entry.written or entry.delete:
                try:
                    if entry.wanted is not None and entry.wanted != entry.written:
                        await self._patch(entry, entry.wanted)
                        failures = 0
                        continue
                    await self._delete(entry)
                    return
                except errors.ApiError as exc:
                    failures, entry.problem = failures + 1, str(exc)
                    if _is_gone(exc, failures):
                        entry.written, entry.delete = entry.wanted, False
                        return
                    level = errors.log_level(exc)
                    log.log(level, "status not written pod=%s error=%s", entry.target.metadata.name, exc)
                    pause = retry_delay(failures, first=0.25, maximum=10.0)
                    await self._clock.sleep(max(pause, getattr(exc, "delay", 0.0)))
        finally:
            entry.task = None

    async def _patch(self, entry: _Entry, status: PodStatus) -> None:
        assert self._client is not None
        meta = entry.target.metadata
        known = (*entry.target.status.conditions, *(entry.written.conditions if entry.written else ()))
        body = status_patch(status, uid=meta.uid, before=PodStatus(conditions=known))
        await self._client.patch(PODS, meta.name, body, namespace=meta.namespace, subresource="status")
        entry.written, entry.problem = status, ""

    async def _delete(self, entry: _Entry) -> None:
        assert self._client is not None
        meta = entry.target.metadata
        await self._client.delete(
            PODS, meta.name, namespace=meta.namespace, uid=meta.uid, grace_period_seconds=0
        )
        entry.delete = False
