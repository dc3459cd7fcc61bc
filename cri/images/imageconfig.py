"""An image's configuration document, reduced to what a runtime may act on.

The document was written by whoever built the image. Nothing in it is an instruction to this node:
labels are inert, an environment entry without `=` never pulls in the daemon's own variable
(CVE-2026-57231), checkpoint images are refused. Source: OCI image-spec config.md.
"""

import hashlib
import posixpath
import re
from dataclasses import dataclass
from typing import Any

from cri.images.errors import CorruptContent
from cri.images.manifest import MAX_CONFIG_BYTES, MAX_LAYERS, decode_json
from cri.images.model import ImageConfig
from cri.images.reference import is_digest

_MAX_TEXT = 1 << 20
_RESERVED_LABELS = ("containerd.io/", "io.containerd.", "io.kubernetes.cri", "nodelet.")
_CHECKPOINTS = ("io.kubernetes.cri-o.annotations.checkpoint", "org.criu.checkpoint")
_PORT = re.compile(r"[0-9]{1,5}(?:-[0-9]{1,5})?(?:/(?:tcp|udp|sctp))?\Z", re.ASCII)
_SIGNAL = re.compile(r"(?:[0-9]{1,2}|(?:SIG)?[A-Z][A-Z0-9]{1,7}(?:[+-][0-9]{1,2})?)\Z", re.ASCII)
_USER = re.compile(r"[^\s:\x00-\x1f\x7f]{1,256}(?::[^\s:\x00-\x1f\x7f]{0,256})?\Z")


@dataclass(frozen=True, kw_only=True)
class ParsedConfig:
    """The two things a configuration document is for."""

    config: ImageConfig
    diff_ids: tuple[str, ...]
    """Digests of the uncompressed layers, lowest first."""


def parse_config(data: bytes) -> ParsedConfig:
    """Parse a configuration document; CorruptContent when a field a container depends on is malformed."""
    if len(data) > MAX_CONFIG_BYTES:
        raise CorruptContent(f"image configuration is larger than {MAX_CONFIG_BYTES} bytes")
    document = decode_json(data, "image configuration")
    inner = document.get("config")
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise CorruptContent("image configuration: config is not an object")
    labels = _labels(inner.get("Labels"))
    config = ImageConfig(
        user=_user(inner.get("User")),
        env=_env(inner.get("Env")),
        entrypoint=_words(inner.get("Entrypoint"), "Entrypoint"),
        cmd=_words(inner.get("Cmd"), "Cmd"),
        working_dir=_working_dir(inner.get("WorkingDir")),
        volumes=_volumes(inner.get("Volumes")),
        stop_signal=_stop_signal(inner.get("StopSignal")),
        labels=labels,
        exposed_ports=_ports(inner.get("ExposedPorts")),
        architecture=_short(document.get("architecture")),
        os=_short(document.get("os")),
        created=_short(document.get("created")),
    )
    return ParsedConfig(config=config, diff_ids=_diff_ids(document.get("rootfs")))


def chain_ids(diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Chain IDs of the layers, lowest first (OCI image-spec config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        if not chain:
            chain.append(diff_id)
            continue
        joined = f"{chain[-1]} {diff_id}".encode()
        chain.append("sha256:" + hashlib.sha256(joined).hexdigest())
    return tuple(chain)


def _diff_ids(rootfs: Any) -> tuple[str, ...]:
    if not isinstance(rootfs, dict) or rootfs.get("type") != "layers":
        raise CorruptContent("image configuration: rootfs.type is not layers")
    diff_ids = rootfs.get("diff_ids")
    if diff_ids is None:
        return ()
    if not isinstance(diff_ids, list) or len(diff_ids) > MAX_LAYERS:
        raise CorruptContent("image configuration: rootfs.diff_ids is not a list of layers")
    if not all(is_digest(item) for item in diff_ids):
        raise CorruptContent("image configuration: rootfs.diff_ids has a malformed digest")
    return tuple(diff_ids)


def _words(value: Any, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise CorruptContent(f"image configuration: {what} is not a list of words")
    if any("\0" in word for word in value) or sum(map(len, value)) > _MAX_TEXT:
        raise CorruptContent(f"image configuration: {what} has a NUL byte or is too long")
    return tuple(value)


def _env(value: Any) -> tuple[str, ...]:
    entries = _words(value, "Env")
    return tuple(entry for entry in entries if entry.partition("=")[0] and "=" in entry)


def _user(value: Any) -> str:
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or not _USER.match(value):
        raise CorruptContent("image configuration: User is not user[:group]")
    return value


def _absolute(value: Any, what: str) -> str:
    if not isinstance(value, str) or len(value) > 4096 or "\0" in value:
        raise CorruptContent(f"image configuration: {what} is not a path")
    # Two leading slashes are special to POSIX and kept by normpath.
    return "/" + posixpath.normpath("/" + value).lstrip("/")


def _working_dir(value: Any) -> str:
    if value is None or value == "":
        return ""
    return _absolute(value, "WorkingDir")


def _volumes(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise CorruptContent("image configuration: Volumes is not an object")
    paths = {_absolute(path, "Volumes") for path in value}
    if "/" in paths:
        raise CorruptContent("image configuration: Volumes names the root directory")
    return tuple(sorted(paths))


def _stop_signal(value: Any) -> str:
    if value is None or value == "":
        return ""
    if not isinstance(value, str) or not _SIGNAL.match(value):
        raise CorruptContent("image configuration: StopSignal is not a signal name or number")
    return value


def _labels(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CorruptContent("image configuration: Labels is not an object")
    if any(key.startswith(_CHECKPOINTS) for key in value):
        raise CorruptContent("image is a container checkpoint, which this runtime does not restore")
    return {
        key: text
        for key, text in value.items()
        if isinstance(text, str) and not key.startswith(_RESERVED_LABELS)
    }


def _ports(value: Any) -> tuple[str, ...]:
    if not isinstance(value, dict):
        return ()
    return tuple(sorted(port for port in value if _PORT.match(port)))


def _short(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= 256 and value.isprintable() else ""
