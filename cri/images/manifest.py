"""Manifests, indexes and descriptors: JSON of a stranger, checked field by field.

Understands OCI image manifests and indexes and their Docker schema 2 twins. `urls` of descriptors and
annotations are never read: layers come from the registry that served the manifest, or not at all.
Source: OCI image-spec manifest.md, image-index.md, descriptor.md; distribution manifest-v2-2.md.
"""

import json
import platform
from dataclasses import dataclass
from typing import Any

from cri.images.errors import CorruptContent, ImageNotFound
from cri.images.reference import is_digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))

MAX_MANIFEST_BYTES = 4 << 20
MAX_CONFIG_BYTES = 4 << 20
MAX_LAYERS = 500  # more than overlayfs can stack (OVL_MAX_STACK in fs/overlayfs/params.h)
MAX_DESCRIPTORS = 512
MAX_INDEX_DEPTH = 4
MAX_LAYER_BYTES = 64 << 30

_INDEXES = frozenset((OCI_INDEX, DOCKER_LIST))
_MANIFESTS = frozenset((OCI_MANIFEST, DOCKER_MANIFEST))
_CONFIGS = frozenset(
    ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
)
_LAYER_PREFIXES = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)
_LAYER_SUFFIXES = frozenset(("", "+gzip", "+zstd", ".gzip", ".zstd"))


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What a machine runs: Go's names, such as linux/amd64 or linux/arm64/v8."""

    os: str = "linux"
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """What a manifest says about a blob."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One image for one platform: its configuration and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, kw_only=True)
class Index:
    """Images of several platforms under one name."""

    manifests: tuple[Descriptor, ...]


@dataclass(frozen=True, kw_only=True)
class FetchedManifest:
    """A manifest or index as a registry sent it."""

    data: bytes
    media_type: str
    digest: str


def this_platform(machine: str | None = None) -> Platform:
    """The platform of this machine, or of a `uname -m` value."""
    names = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
    machine = machine or platform.machine()
    return Platform(architecture=names.get(machine, machine))


def decode_json(data: bytes, what: str) -> dict[str, Any]:
    """Decode a JSON object; CorruptContent when it is anything else or nested absurdly."""
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise CorruptContent(f"{what} is not JSON") from exc
    if not isinstance(value, dict):
        raise CorruptContent(f"{what} is not a JSON object")
    return value


def parse_manifest(data: bytes, media_type: str = "") -> Manifest | Index:
    """Parse a manifest or an index.

    Args:
        data: the document.
        media_type: the Content-Type or descriptor type it was announced with, or empty.

    Raises CorruptContent when the document is malformed, could be read as both kinds
    (CVE-2021-41190), or is of a kind this node cannot run (schema 1, checkpoint, artifact).
    """
    document = decode_json(data, "manifest")
    kinds = {key for key in ("manifests", "layers", "fsLayers") if key in document}
    if len(kinds) != 1 or ("manifests" in kinds and "config" in document):
        raise CorruptContent("manifest is neither clearly an image nor clearly an index")
    if "fsLayers" in kinds or document.get("schemaVersion") != 2 or document["schemaVersion"] is True:
        raise CorruptContent("manifest schema version is not 2")
    allowed = _INDEXES if "manifests" in kinds else _MANIFESTS
    announced = media_type.partition(";")[0].strip()
    if announced in _INDEXES | _MANIFESTS and announced not in allowed:
        raise CorruptContent("manifest content contradicts its media type")
    if "mediaType" in document and document["mediaType"] not in tuple(allowed):
        raise CorruptContent("manifest content contradicts its own media type, or that is unknown")
    if "manifests" in kinds:
        return Index(manifests=_descriptors(document["manifests"], "manifests", MAX_DESCRIPTORS))
    manifest = Manifest(
        config=_descriptor(document.get("config"), "config"),
        layers=_descriptors(document["layers"], "layers", MAX_LAYERS),
    )
    _check_runnable(manifest)
    return manifest


def choose(index: Index, want: Platform) -> Descriptor:
    """The descriptor of an index that suits a platform best; ImageNotFound when none does."""
    best: Descriptor | None = None
    for item in index.manifests:
        if item.media_type not in _MANIFESTS | _INDEXES:
            continue
        if item.platform is None:
            best = best or (item if item.media_type in _INDEXES or len(index.manifests) == 1 else None)
            continue
        if (item.platform.os, item.platform.architecture) != (want.os, want.architecture):
            continue
        if item.platform.variant in (want.variant, "") or (want.architecture, item.platform.variant) == (
            "arm64",
            "v8",
        ):
            return item
    if best is None:
        raise ImageNotFound(f"no image for {want} in the index")
    return best


def _check_runnable(manifest: Manifest) -> None:
    if manifest.config.media_type not in _CONFIGS:
        raise CorruptContent("manifest is not a container image: unknown configuration media type")
    for layer in manifest.layers:
        suffix = next(
            (layer.media_type[len(p) :] for p in _LAYER_PREFIXES if layer.media_type.startswith(p)), None
        )
        if suffix not in _LAYER_SUFFIXES:
            raise CorruptContent("manifest has a layer of an unknown media type")


def _descriptors(value: Any, what: str, limit: int) -> tuple[Descriptor, ...]:
    if not isinstance(value, list):
        raise CorruptContent(f"manifest field {what} is not a list")
    if len(value) > limit:
        raise CorruptContent(f"manifest field {what} has more than {limit} entries")
    return tuple(_descriptor(item, what) for item in value)


def _descriptor(value: Any, what: str) -> Descriptor:
    if not isinstance(value, dict):
        raise CorruptContent(f"manifest field {what} is not a descriptor")
    size, digest, media_type = value.get("size"), value.get("digest"), value.get("mediaType")
    if not is_digest(digest):
        raise CorruptContent(f"manifest field {what}: digest is not a sha256 digest")
    if type(size) is not int or not 0 <= size <= MAX_LAYER_BYTES:
        raise CorruptContent(f"manifest field {what}: size is not a sensible number of bytes")
    if not isinstance(media_type, str):
        raise CorruptContent(f"manifest field {what}: mediaType is missing")
    return Descriptor(
        media_type=media_type, digest=str(digest), size=size, platform=_platform(value.get("platform"))
    )


def _platform(value: Any) -> Platform | None:
    if not isinstance(value, dict):
        return None
    words = [value.get(key, "") for key in ("os", "architecture", "variant")]
    os_name, architecture, variant = (word if isinstance(word, str) else "" for word in words)
    return Platform(os=os_name, architecture=architecture, variant=variant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
