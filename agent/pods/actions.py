"""What a pod's worker may do, and what it knows when it decides: the vocabulary of `plan`.

An action with a `key` becomes a job; while a job of that key runs, the same action is not started again, and
when it ends the worker plans anew. `Hold` and `Wait` start nothing: they say why a container does not run,
and when to look again. All times are monotonic seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from agent.pods.facts import Figures, PodFacts
from agent.pods.restart import Backoff


@dataclass(frozen=True)
class PrepareVolumes:
    """Put the pod's volumes in place."""

    key: str = "volumes"


@dataclass(frozen=True)
class RunSandbox:
    """Make the pod's cgroup and a sandbox of this attempt, after stopping the dead sandboxes before it."""

    attempt: int
    stop: tuple[str, ...] = ()
    key: str = "sandbox"


@dataclass(frozen=True)
class PullImage:
    """Make sure the container's image is there, as its pull policy says."""

    container: str
    image: str

    @property
    def key(self) -> str:
        return f"pull:{self.container}:{self.image}"


@dataclass(frozen=True)
class StartContainer:
    """Create and start a container, then run its postStart hook. `exited`: when the one before it ended."""

    container: str
    attempt: int
    sandbox_id: str
    image_id: str
    exited: float | None = None

    @property
    def key(self) -> str:
        return f"start:{self.container}"


@dataclass(frozen=True)
class KillContainer:
    """preStop hook, stop signal, SIGKILL at the deadline; `message` is the text of the event."""

    container: str
    id: str
    deadline: float
    message: str
    reason: str = ""
    hook: bool = True
    again: bool = False
    """Whether it is killed in order to run again, whatever its exit code will be."""

    @property
    def key(self) -> str:
        return f"kill:{self.id}"


class Change(NamedTuple):
    """A running container's limits: those it shall have, and those it has."""

    id: str
    container: str
    wanted: Figures
    now: Figures


@dataclass(frozen=True)
class ResizePod:
    """Change limits in place: of the pod's cgroup (`in_force` None: nobody knows them) and of containers."""

    sandbox_id: str
    goal: Figures
    in_force: Figures | None
    changes: tuple[Change, ...] = ()
    key: str = "resize"


@dataclass(frozen=True)
class RemoveContainer:
    """Remove a dead or never started container."""

    id: str

    @property
    def key(self) -> str:
        return f"remove:{self.id}"


@dataclass(frozen=True)
class StopSandbox:
    """Free the sandbox's network and processes."""

    id: str

    @property
    def key(self) -> str:
        return f"stop:{self.id}"


@dataclass(frozen=True)
class RemoveSandbox:
    """Remove a stopped sandbox with all its containers."""

    id: str

    @property
    def key(self) -> str:
        return f"remove:{self.id}"


@dataclass(frozen=True)
class TeardownVolumes:
    """Unmount and delete the pod's volumes."""

    key: str = "teardown"


@dataclass(frozen=True)
class RemoveCgroup:
    """Remove the pod's cgroup."""

    key: str = "cgroup"


@dataclass(frozen=True)
class Hold:
    """Why a container does not run; `until` is when to look again, None when something else will tell."""

    container: str
    reason: str
    message: str
    until: float | None = None


@dataclass(frozen=True)
class Wait:
    """Plan again at this time at the latest."""

    until: float


@dataclass(frozen=True)
class Finished:
    """Nothing of the pod is left on this node."""


Job = (
    PrepareVolumes
    | RunSandbox
    | PullImage
    | StartContainer
    | KillContainer
    | ResizePod
    | RemoveContainer
    | StopSandbox
    | RemoveSandbox
    | TeardownVolumes
    | RemoveCgroup
)
Action = Job | Hold | Wait | Finished


class Volumes(Enum):
    """Where the pod's volumes are, as far as this worker knows."""

    UNKNOWN = "unknown"
    READY = "ready"
    GONE = "gone"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that failed: what to tell, since when, and when to try again. `count` failures in a row."""

    reason: str
    message: str
    failed: float
    retry: float
    count: int = 1
    later: str = ""
    """The reason shown once the failure is no longer fresh ("ImagePullBackOff" after "ErrImagePull")."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """The pod has to stop: since when, with how many seconds of grace; `release`: leave nothing behind."""

    began: float
    grace: float
    release: bool


class Condemned(NamedTuple):
    """A running container that has to be killed: the event's text, seconds of grace, and whether it then
    runs again whatever its exit code (a probe's verdict) or as its policy says (a failed hook)."""

    message: str
    grace: float
    again: bool = False


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Everything `plan` may look at besides the pod's spec."""

    now: float
    facts: PodFacts
    jobs: Mapping[str, float | None] = field(default_factory=dict)
    """Keys of the jobs under way; for a kill the deadline it works towards."""
    volumes: Volumes = Volumes.UNKNOWN
    images: Mapping[str, str] = field(default_factory=dict)
    """Container name → id of its image, once the pull policy is satisfied for the next start."""
    failures: Mapping[str, Failure] = field(default_factory=dict)
    exits: Mapping[str, float] = field(default_factory=dict)
    """Container id → when its exit was first seen."""
    backoffs: Mapping[str, Backoff] = field(default_factory=dict)
    started: frozenset[str] = frozenset()
    """Ids of running containers whose startup probe and postStart hook are through."""
    condemned: Mapping[str, Condemned] = field(default_factory=dict)
    """Ids of containers that have to be killed."""
    again: frozenset[str] = frozenset()
    """Ids of containers that were killed in order to run again."""
    figures: Mapping[str, Figures] = field(default_factory=dict)
    """Container name → the limits it was granted."""
    pod_figures: Figures | None = None
    """The limits granted to the pod's cgroup; None: it has none of its own."""
    pod_in_force: Figures | None = None
    """The limits the pod's cgroup was last given by this agent process."""
    stop: Stop | None = None
    hold_until: float | None = None
    """Until when nothing is told to end: services of this node still send the pod new connections."""
    restarts: Mapping[str, int] = field(default_factory=dict)
    """Container name → its next restart count, where the runtime has lost the run before (node reboot)."""
    keep_dead: int = 1
    """Dead containers to keep of each name besides the newest container; negative: all."""
    dead_since: float = math.inf
    """When a container must have ended, in Unix seconds, to be removed as one too many."""
    cgroup: bool = True
    """Whether the pod's cgroup may still be there."""
