"""What the runtime says is there: sandboxes and containers of one pod, as frozen facts.

The facts are what `plan` and `status` decide from; they hold no protobuf. A container's state only moves
forward (created, running, exited), so two reports of one container are merged by taking the later state, and
an event that arrives late can never revive anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TypeVar

LABEL_POD_NAME = "io.kubernetes.pod.name"
LABEL_POD_NAMESPACE = "io.kubernetes.pod.namespace"
LABEL_POD_UID = "io.kubernetes.pod.uid"
LABEL_CONTAINER_NAME = "io.kubernetes.container.name"
ANNOTATION_HASH = "io.kubernetes.container.hash"
ANNOTATION_RESTARTS = "io.kubernetes.container.restartCount"
ANNOTATION_ROOT = "nodelet.io/cgroup-root"
ANNOTATION_GRACE = "io.kubernetes.pod.terminationGracePeriod"
ANNOTATION_MEMORY = "nodelet.io/memory-request"
"""A container's memory request in bytes when it was created: the kernel is never told of it."""
ANNOTATION_MESSAGE_PATH = "io.kubernetes.container.terminationMessagePath"
ANNOTATION_MESSAGE_POLICY = "io.kubernetes.container.terminationMessagePolicy"


class State(IntEnum):
    """A container's life, in order; `UNKNOWN` is what a runtime answers when it lost the process."""

    CREATED = 0
    RUNNING = 1
    EXITED = 2
    UNKNOWN = 3


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A container's limits in the kernel's terms, as CRI carries them; 0: none was set."""

    cpu_shares: int = 0
    cpu_quota: int = 0
    """Microseconds of CPU in each period of `cpu_period` microseconds."""
    cpu_period: int = 0
    memory_limit: int = 0
    """Bytes."""
    memory_swap: int = 0
    """Bytes of memory and swap together."""


@dataclass(frozen=True, kw_only=True)
class ContainerFact:
    """One container the runtime holds, running or dead. Times are Unix seconds, 0.0 when not yet."""

    id: str
    name: str
    sandbox_id: str = ""
    attempt: int = 0
    state: State = State.CREATED
    created_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    image: str = ""
    image_ref: str = ""
    image_id: str = ""
    log_path: str = ""
    hash: str = ""
    restart_count: int = 0
    figures: Figures | None = None
    """The limits in force; None where the runtime does not tell them."""
    user: tuple[int, int, tuple[int, ...]] | None = None
    """User, group and supplemental groups of its first process."""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether a process of it may be running or may yet be started."""
        return self.state in (State.CREATED, State.RUNNING)

    @property
    def dead(self) -> bool:
        """Whether its process has ended, or is lost."""
        return self.state in (State.EXITED, State.UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class SandboxFact:
    """One pod sandbox the runtime holds."""

    id: str
    attempt: int = 0
    ready: bool = True
    created_at: float = 0.0
    ips: tuple[str, ...] = ()
    host_network: bool = False
    runtime_handler: str = ""
    root: str = ""
    """The cgroup root of the node that made it, from our own annotation; empty for others' sandboxes."""


@dataclass(frozen=True, kw_only=True)
class PodFacts:
    """All the runtime holds of one pod. Sandboxes and containers are sorted newest attempt first."""

    uid: str
    namespace: str = ""
    name: str = ""
    sandboxes: tuple[SandboxFact, ...] = ()
    containers: tuple[ContainerFact, ...] = ()

    @property
    def sandbox(self) -> SandboxFact | None:
        """The newest sandbox, ready or not."""
        return self.sandboxes[0] if self.sandboxes else None

    def latest(self, name: str) -> ContainerFact | None:
        """The newest container of that name."""
        return next((c for c in self.containers if c.name == name), None)

    def previous(self, name: str) -> ContainerFact | None:
        """The one before the newest of that name."""
        return next((c for c in [c for c in self.containers if c.name == name][1:]), None)

    def container(self, container_id: str) -> ContainerFact | None:
        """The container of that id."""
        return next((c for c in self.containers if c.id == container_id), None)

    @property
    def root(self) -> str:
        """The cgroup root of the node it belongs to, empty when nothing says so."""
        return next((box.root for box in self.sandboxes if box.root), "")

    @property
    def empty(self) -> bool:
        """Whether the runtime holds nothing of the pod."""
        return not self.sandboxes and not self.containers


T = TypeVar("T", SandboxFact, ContainerFact)


def merge(
    old: PodFacts, *, sandboxes: Iterable[SandboxFact], containers: Iterable[ContainerFact]
) -> PodFacts:
    """Old facts with newer reports laid over them; whatever is not reported stays as it was."""
    boxes = {s.id: s for s in old.sandboxes}
    for box in sandboxes:
        known = boxes.get(box.id)
        boxes[box.id] = box if known is None else _later_sandbox(known, box)
    cons = {c.id: c for c in old.containers}
    for con in containers:
        was = cons.get(con.id)
        cons[con.id] = con if was is None or con.state >= was.state else was
    return replace(old, sandboxes=_sorted(boxes.values()), containers=_sorted(cons.values()))


def without(facts: PodFacts, ids: Iterable[str]) -> PodFacts:
    """The facts after those sandboxes or containers were removed."""
    gone = frozenset(ids)
    return replace(
        facts,
        sandboxes=tuple(s for s in facts.sandboxes if s.id not in gone),
        containers=tuple(c for c in facts.containers if c.id not in gone and c.sandbox_id not in gone),
    )


def _later_sandbox(known: SandboxFact, new: SandboxFact) -> SandboxFact:
    # A sandbox never becomes ready again; its addresses are known once and may be absent from later reports.
    return replace(new, ready=new.ready and known.ready, ips=new.ips or known.ips)


def _sorted(items: Iterable[T]) -> tuple[T, ...]:
    return tuple(sorted(items, key=lambda item: (item.attempt, item.created_at), reverse=True))
