"""Registry credentials from image pull secrets. Pure; nothing here is ever logged.

Source: kubernetes.io/dockerconfigjson and kubernetes.io/dockercfg secrets; matching as in
pkg/credentialprovider/keyring.go: the longest matching registry path wins, `*` globs within one host label.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from agent.api.structs import Secret
from proto.cri import runtime_pb2 as pb

_HUB = "docker.io"
_HUB_NAMES = ("https://index.docker.io/v1/", "index.docker.io/v1", "index.docker.io", "registry-1.docker.io")


class Credential(NamedTuple):
    """What a registry is shown, and the secret it is from."""

    auth: pb.AuthConfig
    secret: Secret


def credentials(image: str, secrets: Iterable[Secret]) -> list[Credential]:
    """The credentials that fit an image, best match first; empty when there are none.

    Secrets that cannot be read are skipped: another one may still fit, and the pull's own error will tell.
    """
    wanted = repository(image)
    found: list[tuple[int, Credential]] = []
    for secret in secrets:
        for address, entry in _entries(secret):
            pattern = _normal(address)
            if _matches(pattern, wanted):
                found.append((len(pattern), Credential(_auth(entry, address), secret)))
    return [credential for _, credential in sorted(found, key=lambda item: item[0], reverse=True)]


def repository(image: str) -> str:
    """The image's full name without tag and digest: `docker.io/library/busybox` for `busybox:1.36`."""
    name = image.partition("@")[0]
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        first, rest = _HUB, name if slash else f"library/{name}"
    head, _, last = rest.rpartition("/")
    last = last.partition(":")[0]
    return f"{first}/{head}/{last}" if head else f"{first}/{last}"


def _normal(address: str) -> str:
    if address in _HUB_NAMES:
        return _HUB
    for scheme in ("https://", "http://"):
        address = address.removeprefix(scheme)
    address = address.rstrip("/")
    for suffix in ("/v1", "/v2"):
        address = address.removesuffix(suffix)
    return _HUB if address in _HUB_NAMES else address


def _matches(pattern: str, repository: str) -> bool:
    host, _, path = pattern.partition("/")
    own_host, _, own_path = repository.partition("/")
    labels, own = host.split("."), own_host.split(".")
    if len(labels) != len(own) or not all(
        fnmatch.fnmatchcase(o, p) for o, p in zip(own, labels, strict=True)
    ):
        return False
    return not path or own_path == path or own_path.startswith(f"{path}/")


def _entries(secret: Secret) -> Iterable[tuple[str, dict[str, Any]]]:
    raw = secret.data.get(".dockerconfigjson") or secret.data.get(".dockercfg")
    if not raw:
        return []
    try:
        content = json.loads(base64.b64decode(raw))
    except (binascii.Error, ValueError):
        return []
    auths = content.get("auths", {}) if ".dockerconfigjson" in secret.data else content
    return [(k, v) for k, v in auths.items() if isinstance(v, dict)] if isinstance(auths, dict) else []


def _auth(entry: dict[str, Any], address: str) -> pb.AuthConfig:
    user, password = str(entry.get("username", "")), str(entry.get("password", ""))
    if not user and entry.get("auth"):
        try:
            user, _, password = base64.b64decode(str(entry["auth"])).decode().partition(":")
        except (binascii.Error, ValueError):
            user = password = ""
    return pb.AuthConfig(
        username=user,
        password=password,
        server_address=_normal(address).partition("/")[0],
        identity_token=str(entry.get("identitytoken", "")),
        registry_token=str(entry.get("registrytoken", "")),
    )
