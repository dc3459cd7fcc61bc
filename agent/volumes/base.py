"""What every volume plugin shares: its arguments, its result and its errors.

A plugin is one file and one line in `agent.volumes.plugins`. It has

    async def set_up(context, volume) -> PreparedVolume    may be repeated; the volume is usable then
    async def tear_down(removal) -> None                   optional: before unmounting and deleting

Volumes live where kubelet keeps them, so that backup tools, drivers and people find them:

    <root>/pods/<uid>/volumes/kubernetes.io~<plugin>/<name>          directories
    <root>/pods/<uid>/volumeDevices/kubernetes.io~<plugin>/<name>    links to block devices

The name is the PersistentVolume's for a claim, and the pod's own otherwise. A claim has its place even where
nothing is mounted on it, because that is the record of which pods use a PersistentVolume.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
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
        Volume,
    )
    from agent.api.trust import PodCertificateRequest, PodCertificateRequestSpec
    from agent.volumes.children import Children
    from agent.volumes.mounts import Mounter
    from agent.volumes.pod_certificates import PodCertificates
    from agent.volumes.tokens import Tokens


class VolumeError(Exception):
    """A volume cannot be used, or cannot be taken away, now.

    Attributes:
        reason: the event's reason, "FailedMount" or "FailedUnMount".
        message: the event's text, e.g. 'MountVolume.SetUp failed for volume "x" : configmap "y" not found'.
        slow: trying again is costly: to be done ever less often.
    """

    def __init__(self, message: str, *, reason: str = "FailedMount", slow: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.slow = slow


class Unready(Exception):
    """A plugin's word for "cannot be set up"; the manager adds volume and phase and makes a VolumeError.

    Attributes:
        slow: trying again is costly (an image pull): to be done ever less often.
    """

    def __init__(self, message: str, *, slow: bool = False) -> None:
        super().__init__(message)
        self.slow = slow


@dataclass(frozen=True)
class PreparedVolume:
    """A volume that is in place on the host.

    Attributes:
        name: the pod's name for it.
        host_path: what to bind into containers: a directory, or a file, socket or device of a hostPath.
        read_only: containers get it read-only whatever their mount says.
        live: its content follows API objects; `VolumeManager.refresh` rewrites it.
        changed: whether this set-up changed any content.
        remote: another machine answers for it, so only children may touch it.
        device: volumeMode Block: the device node, in place of a directory.
        image: an image volume: the runtime's id of the image it mounts itself.
        group: a group that every container is to be in, because the volume belongs to it.
    """

    name: str
    host_path: Path
    read_only: bool = False
    live: bool = False
    changed: bool = field(default=False, compare=False)
    remote: bool = False
    device: Path | None = None
    image: str = ""
    group: int | None = None


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
        image: in place of a host path, the image to mount.
        image_sub_path: the part of it to mount, relative; empty for all.
    """

    volume: str
    host_path: str
    container_path: str
    read_only: bool = False
    propagation: str = "None"
    recursive_read_only: bool = False
    image: str = ""
    image_sub_path: str = ""


@dataclass(frozen=True)
class BlockDevice:
    """One raw block volume for the runtime: the node on the host, its path in the container."""

    host_path: str
    container_path: str
    read_only: bool = False


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

    async def runtime_handler(self, name: str) -> str | None:
        """The handler a RuntimeClass names, or None when the class does not exist."""


class Claims(Protocol):
    """Where claims and their volumes come from; None where an object does not exist."""

    async def get_claim(self, namespace: str, name: str) -> PersistentVolumeClaim | None:
        """A PersistentVolumeClaim."""

    async def get_persistent_volume(self, name: str) -> PersistentVolume | None:
        """A PersistentVolume."""


class Certificates(Protocol):
    """Trust anchors of the cluster and certificates for pods."""

    async def trust_bundles(self, name: str, *, signer: str, labels: str | None) -> Sequence[str]:
        """PEM texts of the ClusterTrustBundle of that name; without a name, of those of a signer that a label
        selector chooses ("": all, None: none). Raises ApiError, NotFound where none has that name.
        """

    async def request_certificate(self, pod: Pod, spec: PodCertificateRequestSpec) -> str:
        """Submit a PodCertificateRequest; its name. Raises ApiError."""

    async def certificate_request(self, namespace: str, name: str) -> PodCertificateRequest | None:
        """A request with what was decided, None when it is gone. Raises ApiError."""


AllocatableGetter = Callable[[], Mapping[str, str]]
"""The node's allocatable resources now: resource name → quantity text."""

ImageGetter = Callable[["Pod", str, str], Awaitable[str]]
"""Makes an image present: pod, reference, pull policy → the runtime's id of it. Raises Unready."""


@dataclass(frozen=True)
class Claimed:
    """The claim behind a volume of a pod, and the PersistentVolume bound to it."""

    claim: PersistentVolumeClaim
    volume: PersistentVolume
    read_only: bool = False
    """The pod asks for it read-only."""

    @property
    def name(self) -> str:
        """The PersistentVolume's name."""
        return self.volume.metadata.name

    @property
    def group(self) -> int | None:
        """The group that owns it, where its annotation pv.beta.kubernetes.io/gid names one."""
        text = self.volume.metadata.annotations.get("pv.beta.kubernetes.io/gid", "")
        return int(text) if text.isascii() and text.isdecimal() and int(text) < 2**31 else None

    @property
    def block(self) -> bool:
        """Whether containers get a device in place of a file system."""
        return self.volume.spec.volume_mode == "Block"


@dataclass(frozen=True)
class Context:
    """What a plugin may use while it sets up one pod's volume.

    Attributes:
        pod: the pod.
        directory: the volume's own directory (volumeMode Block: its link), not yet made.
        sources: API objects.
        tokens: service account tokens, shared by all pods.
        pod_certificates: certificates of the pods' own, shared by all pods.
        certificates: trust anchors; None on a node without API.
        mounter: the only way to mount on file systems of this machine.
        children: the only way to touch another machine's.
        clock: time.
        allocatable: the node's allocatable by resource name, for limits that a container leaves unset.
        host_root: "/" except in tests.
        claims: PersistentVolumes and claims; None on a node without API.
        claimed: what a claim is bound to; None for a volume that the pod describes itself.
        image: makes an image present; None where there is no runtime to ask.
    """

    pod: Pod
    directory: Path
    sources: Sources
    tokens: Tokens
    mounter: Mounter
    children: Children
    clock: Clock
    allocatable: Mapping[str, str]
    host_root: Path
    pod_certificates: PodCertificates
    certificates: Certificates | None = None
    claims: Claims | None = None
    claimed: Claimed | None = None
    image: ImageGetter | None = None

    @property
    def fs_group(self) -> int | None:
        """The pod's fsGroup: the group that shall own and share its volumes."""
        return self.pod.spec.security_context.fs_group


@dataclass(frozen=True)
class Removal:
    """What a plugin may use to take its volume away: the disk says the rest, not the API.

    Attributes:
        directory: the volume's directory (volumeMode Block: its link).
        pods_root: the directory of all pods' directories.
    """

    directory: Path
    pods_root: Path


SetUp = Callable[[Context, "Volume"], Awaitable[PreparedVolume]]
TearDown = Callable[[Removal], Awaitable[None]]


@dataclass(frozen=True)
class Plugin:
    """A kind of volume.

    Attributes:
        field: which field of the API's Volume, or of a PersistentVolumeSpec, describes one.
        directory: kubelet's name for the directory of such volumes, "kubernetes.io~<...>".
        set_up: see the top of this module.
        tear_down: likewise; None: unmounting and deleting the directory is all there is to do.
        live: it follows API objects.
    """

    field: str
    directory: str
    set_up: SetUp
    tear_down: TearDown | None = None
    live: bool = False
