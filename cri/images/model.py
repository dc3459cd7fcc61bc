"""The records that leave `cri.images`: images, their configuration, credentials, progress, usage.

Plain frozen data, no behaviour. What a registry or an image author wrote has been checked before
it gets here (`cri.images.imageconfig`), so users of these records need not check again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """The runtime part of an image's configuration (OCI image-spec config.md, `config`)."""

    user: str = ""
    """`user`, `uid`, `user:group`, `uid:gid` in any mix, or empty for root; not yet resolved."""
    env: tuple[str, ...] = ()
    """`NAME=value` entries; entries without `=` have been dropped."""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    """An absolute path inside the container, or empty for `/`."""
    volumes: tuple[str, ...] = ()
    """Absolute, normalised paths inside the container, sorted."""
    stop_signal: str = ""
    """A signal name (`SIGTERM`, `TERM`) or number, or empty."""
    labels: dict[str, str] = field(default_factory=dict)
    """Inert text; reserved runtime prefixes have been dropped."""
    exposed_ports: tuple[str, ...] = ()
    """`80/tcp` and the like, sorted."""
    architecture: str = ""
    os: str = ""
    created: str = ""


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of the store, as CRI describes it (runtime.v1 `Image`)."""

    id: str
    """`sha256:<hex>`: the digest of the image's configuration."""
    repo_tags: tuple[str, ...]
    """`docker.io/library/busybox:1.36`, sorted."""
    repo_digests: tuple[str, ...]
    """`docker.io/library/busybox@sha256:…` of the manifest or index that was pulled, sorted."""
    size: int
    """Bytes of manifest, configuration and compressed layers."""
    config: ImageConfig
    pinned: bool = False
    """True: image garbage collection leaves this image alone."""
    pulled_at: float = 0.0
    """Unix seconds of the latest pull or import."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What to show a registry (CRI `AuthConfig`). Secrets never appear in the repr."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    auth: str = field(default="", repr=False)
    """base64 of `username:password`, used when both are empty."""
    server_address: str = ""
    """When not empty, the credentials are shown to this registry only."""
    identity_token: str = field(default="", repr=False)
    """An OAuth2 refresh token."""
    registry_token: str = field(default="", repr=False)
    """A bearer token to be sent as it is."""


@dataclass(frozen=True, kw_only=True)
class PullProgress:
    """How far a pull is."""

    layers: int
    layers_done: int
    bytes_total: int
    bytes_done: int


Progress = Callable[[PullProgress], None]
"""Called from the event loop, at most a few times a second and once at the end of each layer."""


@dataclass(frozen=True, kw_only=True)
class StoreUsage:
    """What the store occupies (CRI `FilesystemUsage`)."""

    path: Path
    """A directory on the file system in question, for the mount point."""
    used_bytes: int
    inodes_used: int
