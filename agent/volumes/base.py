"""What every volume plugin shares: its arguments, its result and its errors.

A plugin is one file with one `async def set_up(context, volume) -> PreparedVolume` that may be repeated.
Volumes live where kubelet keeps them, `<root>/pods/<uid>/volumes/kubernetes.io~<plugin>/<name>`, so that
backup tools, drivers and people find them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from host.clocks import Clock

if TYPE_CHECKING:
    from agent.api.structs import (
        ConfigMap,
        PersistentVolume,
        PersistentVolumeClaim,
        Pod,
        Secret,
        TokenRequest,
    )
    from agent.volumes.mounts import Mounter
    from agent.volumes.tokens import Tokens


class VolumeError(Exception):
    """A volume cannot be used, or cannot be taken away, now.

    Attributes:
        reason: the event's reason, "FailedMount" or "FailedUnMount".
        message: the event's text, e.g. 'MountVolume.SetUp failed for volume "x" : configmap "y" not found'.
    """

    def __init__(self, message: str, *, reason: str = "FailedMount") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason


class Unready(Exception):
    """A plugin's word for "cannot be set up"; the manager adds volume and phase and makes a VolumeError."""


@dataclass(frozen=True)
class PreparedVolume:
    """A volume that is in place on the host.

    Attributes:
        name: the pod's name for it.
        host_path: what to bind into containers: a directory, or a file, socket or device of a hostPath.
        read_only: containers get it read-only whatever their mount says.
        live: its content follows API objects; `VolumeManager.refresh` rewrites it.
        changed: whether this set-up changed any content.
    """

    name: str
    host_path: Path
    read_only: bool = False
    live: bool = False
    changed: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Mount:
    """One mount for the runtime, in CRI's terms.

    Attributes:
        volume: the pod's volume name.
        host_path: source on the host, absolute.
        container_path: target inside the container, absolute.
        read_only: mounted read-only.
        propagation: "None", "HostToContainer" or "Bidirectional", as in the API.
        recursive_read_only: submounts become read-only too.
    """

    volume: str
    host_path: str
    container_path: str
    read_only: bool = False
    propagation: str = "None"
    recursive_read_only: bool = False


class Sources(Protocol):
    """Where plugins get API objects from; tests pass a plain class, the agent its caches.

    Each raises its caller's error for anything but "not there", which is None.
    """

    async def get_config_map(self, namespace: str, name: str) -> ConfigMap | None:
        """A ConfigMap, or None when it does not exist."""

    async def get_secret(self, namespace: str, name: str) -> Secret | None:
        """A Secret, or None when it does not exist."""

    async def create_token(self, namespace: str, service_account: str, request: TokenRequest) -> TokenRequest:
        """POST .../serviceaccounts/{name}/token; the answer's status has the token and its expiry."""


class Claims(Protocol):
    """Where claims and their volumes come from; None where an object does not exist."""

    async def get_claim(self, namespace: str, name: str) -> PersistentVolumeClaim | None:
        """A PersistentVolumeClaim."""

    async def get_persistent_volume(self, name: str) -> PersistentVolume | None:
        """A PersistentVolume."""


AllocatableGetter = Callable[[], Mapping[str, str]]
"""The node's allocatable resources now: resource name → quantity text."""


@dataclass(frozen=True)
class Context:
    """What a plugin may use while it sets up one pod's volume.

    Attributes:
        pod: the pod.
        directory: the volume's own directory, not yet made.
        sources: API objects.
        tokens: service account tokens, shared by all pods.
        mounter: the only way to mount.
        clock: time.
        allocatable: the node's allocatable by resource name, for limits that a container leaves unset.
        host_root: "/" except in tests.
        claims: PersistentVolumes and claims; None on a node without API.
    """

    pod: Pod
    directory: Path
    sources: Sources
    tokens: Tokens
    mounter: Mounter
    clock: Clock
    allocatable: Mapping[str, str]
    host_root: Path
    claims: Claims | None = None

    @property
    def fs_group(self) -> int | None:
        """The pod's fsGroup: the group that shall own and share its volumes."""
        return self.pod.spec.security_context.fs_group
