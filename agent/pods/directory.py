"""Which pods there are and where their containers, sandboxes and logs are: questions, no changes.

The kubelet API, log rotation and the tools ask here; `PodManager` fills it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent.api.structs import Pod
from agent.pods import spec
from agent.pods.facts import PodFacts, State
from agent.pods.observer import Observer
from agent.pods.worker import PodWorker


class PodDirectory:
    """The pods of one node by uid, and the mirrors of its static pods."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self._workers: dict[str, PodWorker] = {}
        self._mirrors: dict[str, Pod] = {}

    def status_target(self, pod: Pod) -> Pod | None:
        """The API object that shows a pod's status: itself, or the mirror of a static pod."""
        if not spec.is_static(pod):
            return pod
        key = pod.metadata.annotations.get(spec.HASH_ANNOTATION, "")
        return next(
            (
                m
                for m in self._mirrors.values()
                if m.metadata.annotations.get(spec.MIRROR_ANNOTATION) == key
                and m.metadata.name == pod.metadata.name
                and m.metadata.deletion_timestamp is None
            ),
            None,
        )

    def pods(self) -> list[Pod]:
        """Every pod of this node with the status computed here (which the API may not have yet)."""
        return [_with_status(w) for w in self._workers.values() if not w.removed]

    def find(self, namespace: str, name: str, uid: str | None = None) -> Pod | None:
        """The pod of that name (and uid, when given), with its computed status, or None."""
        worker = self._find(namespace, name, uid)
        return _with_status(worker) if worker is not None else None

    def container_id(
        self, namespace: str, name: str, container: str, *, previous: bool = False, uid: str | None = None
    ) -> str | None:
        """Runtime id (without scheme) of a pod's container, of the one before it when `previous`."""
        facts = self._facts_of(namespace, name, uid)
        fact = facts.previous(container) if previous else facts.latest(container)
        return fact.id if fact is not None and fact.state is not State.CREATED else None

    def sandbox_id(self, namespace: str, name: str, *, uid: str | None = None) -> str | None:
        """Runtime id of the pod's ready sandbox (for port-forward)."""
        box = self._facts_of(namespace, name, uid).sandbox
        return box.id if box is not None and box.ready else None

    def log_path(
        self, namespace: str, name: str, container: str, *, previous: bool = False, uid: str | None = None
    ) -> str | None:
        """Absolute path of a container's log file, of the one before it when `previous`."""
        facts = self._facts_of(namespace, name, uid)
        fact = facts.previous(container) if previous else facts.latest(container)
        return fact.log_path or None if fact is not None else None

    def running_logs(self) -> list[tuple[str, Path]]:
        """Ids and log files of all running containers, for log rotation."""
        return [
            (fact.id, Path(fact.log_path))
            for uid in self._workers
            for fact in self.observer.of(uid).containers
            if fact.state is State.RUNNING and fact.log_path
        ]

    def _find(self, namespace: str, name: str, uid: str | None) -> PodWorker | None:
        named = [
            w
            for w in self._workers.values()
            if (w.pod.metadata.namespace, w.pod.metadata.name) == (namespace, name)
            and uid in (None, "", w.uid, *self._mirror_uids(w.pod))
        ]
        # A pod and its successor of the same name may both be here while the first one ends.
        return next((w for w in named if not w.removed), named[0] if named else None)

    def _mirror_uids(self, pod: Pod) -> tuple[str, ...]:
        mirror = self.status_target(pod) if spec.is_static(pod) else None
        return (mirror.metadata.uid,) if mirror is not None else ()

    def _facts_of(self, namespace: str, name: str, uid: str | None) -> PodFacts:
        worker = self._find(namespace, name, uid)
        return self.observer.of(worker.uid) if worker is not None else PodFacts(uid="")


def _with_status(worker: PodWorker) -> Pod:
    return msgspec.structs.replace(worker.pod, status=worker.memory.status)
