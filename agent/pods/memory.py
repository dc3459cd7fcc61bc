"""What one pod's worker remembers between two plans: results of its jobs, times it saw, decisions about it.

Everything here can be lost with the agent: what matters is rebuilt from the runtime's facts and the API's
status.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agent.api.structs import PodStatus
from agent.pods.actions import Condemned, Failure, Stop, Volumes
from agent.pods.convert import ImageFact
from agent.pods.facts import Figures
from agent.pods.restart import Backoff
from agent.pods.status import Verdict
from agent.pods.status_resize import PendingResize
from agent.volumes.base import PreparedVolume


@dataclass
class Memory:
    """Mutable, owned by one worker and written by its jobs."""

    status: PodStatus
    """The last status computed."""
    wake: Callable[[], None] = lambda: None
    """Makes the worker look again."""
    volumes: Volumes = Volumes.UNKNOWN
    prepared: dict[str, PreparedVolume] = field(default_factory=dict)
    images: dict[str, ImageFact] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    exits: dict[str, float] = field(default_factory=dict)
    backoffs: dict[str, Backoff] = field(default_factory=dict)
    condemned: dict[str, Condemned] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)
    """Ids of containers that were killed in order to run again."""
    notes: dict[str, str] = field(default_factory=dict)
    """Container name → how far its image's pull is."""
    holds: dict[str, tuple[str, str]] = field(default_factory=dict)
    hooking: set[str] = field(default_factory=set)
    """Ids of containers whose postStart hook is running."""
    probed: set[str] = field(default_factory=set)
    messages: dict[str, str] = field(default_factory=dict)
    """Termination messages by container id."""
    own: set[str] = field(default_factory=set)
    """Ids of containers this agent process started itself."""
    killing: set[str] = field(default_factory=set)
    """Ids of containers this agent process has told to stop."""
    restarting: bool = False
    """Whether all containers are being restarted because one of them ended."""
    stop: Stop | None = None
    stop_grace: int | None = None
    verdict: Verdict | None = None
    pending: PendingResize | None = None
    resized: int = 0
    """Generation of the spec whose granted resize is under way, 0 when none is."""
    pod_in_force: Figures | None = None
    """The limits the pod's cgroup was last given."""
    cgroup: bool = True
    active_since: float | None = None
    """When activeDeadlineSeconds begins to count, monotonic."""
    deadline: float | None = None
    """When activeDeadlineSeconds ends, monotonic."""
    finished: bool = False
    unconfirmed: bool = False
    """Whether the pod is known from its record alone, because the API has not been reached yet."""
