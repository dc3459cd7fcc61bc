"""What every volume plugin shares: its arguments, its result and its one error.

A plugin is one file with one `async def set_up(ctx, volume) -> PreparedVolume`; nothing is registered at import.
Volumes live where kubelet keeps them, `<root>/pods/<uid>/volumes/kubernetes.io~<plugin>/<name>`, so that CSI
drivers, backup tools and people find them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from host.clocks import Clock

if TYPE_CHECKING:
    from agent.api.structs import ConfigMap, Pod, Secret


class VolumeError(Exception):
    """A volume cannot be used now.

    Attributes:
        reason: the event's reason, "FailedMount" unless said otherwise.
        message: the event's text, e.g. 'MountVolume.SetUp failed for volume "x" : configmap "y" not found'.
        permanent: True when a retry without a change of the pod cannot help.
    """

    def __init__(self, message: str, *, reason: str = "FailedMount", permanent: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.permanent = permanent


class Unready(Exception):
    """A plugin's own word for "cannot be set up": the manager adds volume and phase and makes a VolumeError."""


@dataclass(frozen=True)
class PreparedVolume:
    """A volume that is in place on the host.

    Attributes:
        name: the pod's name for it.
        host_path: what to bind into containers: usually a directory, a file or device for some hostPath types.
        read_only: containers get it read-only whatever their mount says.
        plugin: kubelet's plugin name, for instance "configmap" ("" for a hostPath).
        live: its content follows API objects; `VolumeManager.refresh` rewrites it.
    """

    name: str
    host_path: Path
    read_only: bool = False
    plugin: str = ""
    live: bool = False


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
        """A Secret, or None when it does not exist. Its `data` values are base64 text as in the API, or bytes."""

    async def create_token(self, namespace: str, service_account: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST a TokenRequest (authentication.k8s.io/v1) and return the API's answer, both as JSON objects."""


AllocatableGetter = Callable[[], Mapping[str, str]]
Waiter = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Context:
    """What a plugin may use while it sets up one pod's volume.

    Attributes:
        pod: the pod.
        directory: the volume's own directory (not yet made).
        sources: API objects.
        clock: time.
        fs_group: the pod's fsGroup, or None.
        allocatable: the node's allocatable by resource name, as quantity strings, for limits left unset.
        host_root: "/" except in tests.
    """

    pod: Pod
    directory: Path
    sources: Sources
    clock: Clock
    fs_group: int | None
    allocatable: Mapping[str, str]
    host_root: Path
