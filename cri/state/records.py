"""What is known about sandboxes and containers, as facts: times, exit code, configuration, network result.

A state is never stored; it is derived, so it cannot disagree with the facts:

    sandbox    ready_at == 0                        (being made: hidden, undone after a crash)
               ready_at, stopped_at == 0            READY
               stopped_at                           NOTREADY

    container  created_at == 0                      (being made: hidden, undone after a crash)
               created_at, no later fact            CREATED
               started_at, finished_at == 0         RUNNING
               finished_at                          EXITED

Times are nanoseconds since 1970 (as CRI has them). The kubelet's own words are kept as the protobuf message
it sent, because that is the one form that loses nothing; everything the runtime found out is plain JSON.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

SANDBOX_KIND = "nodelet-cri/sandbox"
CONTAINER_KIND = "nodelet-cri/container"
RECORD_VERSION = 1


class SandboxState(Enum):
    """Where a sandbox is in its life."""

    MAKING = "making"
    READY = "ready"
    NOT_READY = "not ready"


class ContainerState(Enum):
    """Where a container is in its life."""

    MAKING = "making"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


class SandboxRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The facts about one pod sandbox."""

    id: str
    config: bytes
    """The `PodSandboxConfig` of RunPodSandbox, serialised."""
    runtime_handler: str = ""
    boot_id: str = ""
    """The kernel's boot id when it was made: after a reboot nothing of it can be running."""
    created_at: int = 0
    ready_at: int = 0
    stopped_at: int = 0
    netns: str = ""
    """Path of its network namespace; empty on the host's network."""
    network: dict[str, Any] = {}
    """The CNI result of ADD; empty on the host's network and before ADD."""
    network_removed: bool = False
    """True: CNI DEL has succeeded and the namespace is gone."""

    @property
    def state(self) -> SandboxState:
        """Derived from the times."""
        if not self.ready_at:
            return SandboxState.MAKING
        return SandboxState.NOT_READY if self.stopped_at else SandboxState.READY


class ContainerRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The facts about one container."""

    id: str
    sandbox_id: str
    config: bytes
    """The `ContainerConfig` of CreateContainer, serialised; resources as last updated."""
    image_id: str = ""
    image_ref: str = ""
    """A repository digest, or the image id where the image has none."""
    log_path: str = ""
    """Absolute path of the log on the host, or empty."""
    cgroup: str = ""
    stop_signal: int = 15
    volume_images: tuple[str, ...] = ()
    """Ids of images mounted as volumes."""
    user: tuple[int, int, tuple[int, ...]] | None = None
    """uid, gid and supplementary gids of its first process."""
    created_at: int = 0
    started_at: int = 0
    finished_at: int = 0
    pid: int = 0
    exit_code: int = 0
    reason: str = ""
    """Completed, Error, OOMKilled, StartError, Unknown."""
    message: str = ""

    @property
    def state(self) -> ContainerState:
        """Derived from the times."""
        if not self.created_at:
            return ContainerState.MAKING
        if self.finished_at:
            return ContainerState.EXITED
        return ContainerState.RUNNING if self.started_at else ContainerState.CREATED


def exited(record: ContainerRecord, *, at: int, code: int, oom: bool, message: str = "") -> ContainerRecord:
    """The record after its first process ended (a second exit changes nothing: the first one was the truth).

    Args:
        record: the facts so far.
        at: when, in nanoseconds.
        code: exit status, or 128 + signal.
        oom: whether the kernel killed it for memory.
        message: words for people, when there are any.
    """
    if record.finished_at:
        return record
    reason = "OOMKilled" if oom else ("Completed" if code == 0 else "Error")
    return msgspec.structs.replace(record, finished_at=at, exit_code=code, reason=reason, message=message)
