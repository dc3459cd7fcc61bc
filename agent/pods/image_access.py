"""Which pods may use an image that is on the node already: those whose own credentials have opened it.

Without this a pod could name a private image that another pod has pulled, and run it without its secret. Each
pull is recorded with what opened the registry: nothing (then every pod may have the image), or a secret, by
its coordinates and by a hash of the credential. Before a pull its intent is written, so that an image whose
record a crash has cut off does not pass for one that was on the node from the start. Files are kubelet's.

Source: KEP-2535; pkg/kubelet/images/pullmanager, v1.37.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from agent.api.meta import Struct
from agent.pods.credentials import Credential, repository
from host.errors import HostError
from host.files import write_atomic
from proto.cri import runtime_pb2 as pb

log = logging.getLogger(__name__)
API_VERSION = "kubelet.config.k8s.io/v1beta1"
MAX_SECRETS = 100
"""Secrets kept for one image name; older ones are forgotten, and have to be shown again."""


class PullSecret(Struct, frozen=True, kw_only=True):
    """A secret that opened a registry, and the hash of the credential it held then."""

    uid: str = ""
    namespace: str = ""
    name: str = ""
    credential_hash: str = ""


class PullCredentials(Struct, frozen=True, kw_only=True):
    """What opens one image name."""

    kubernetes_secrets: tuple[PullSecret, ...] = ()
    node_pods_accessible: bool = False


class PulledRecord(Struct, omit_defaults=False, frozen=True, kw_only=True):
    """Of one image, by its names without tag and digest."""

    api_version: str = API_VERSION
    kind: str = "ImagePulledRecord"
    image_ref: str = ""
    credential_mapping: dict[str, PullCredentials] = {}


def secret_of(credential: Credential) -> PullSecret:
    """How a credential is remembered."""
    meta = credential.secret.metadata
    digest = credential_hash(credential.auth)
    return PullSecret(uid=meta.uid, namespace=meta.namespace, name=meta.name, credential_hash=digest)


def credential_hash(auth: pb.AuthConfig) -> str:
    """The same for the same credential, whatever secret holds it; tells nothing about it."""
    return hashlib.sha256(auth.SerializeToString(deterministic=True)).hexdigest()


def must_verify(image: str, *, ours: bool, policy: str, allowlist: Iterable[str]) -> bool:
    """Whether an image on the node needs a credential check at all; `ours`: pulled by this node's agent."""
    if policy == "NeverVerify":
        return False
    if policy == "NeverVerifyPreloadedImages":
        return ours
    if policy == "NeverVerifyAllowlistedImages":
        name = repository(image)
        return ours or not any(_listed(name, pattern) for pattern in allowlist)
    return True


def opens(known: PullCredentials | None, shown: Iterable[Credential]) -> bool:
    """Whether what a pod shows has opened the image before."""
    if known is None:
        return False
    if known.node_pods_accessible:
        return True
    mine = [secret_of(credential) for credential in shown]
    return any(_same(one, other) for one in mine for other in known.kubernetes_secrets)


def learned(record: PulledRecord, image: str, opened: Credential | None) -> PulledRecord:
    """The record after a pull that this credential opened, or none."""
    name = repository(image)
    known = record.credential_mapping.get(name, PullCredentials())
    if opened is None:
        known = PullCredentials(node_pods_accessible=True)
    elif not known.node_pods_accessible:
        new = secret_of(opened)
        if new not in known.kubernetes_secrets:
            others = [s for s in known.kubernetes_secrets if _place(s) != _place(new)]
            known = PullCredentials(kubernetes_secrets=(*others[1 - MAX_SECRETS :], new))
    return msgspec.structs.replace(record, credential_mapping={**record.credential_mapping, name: known})


def _listed(name: str, pattern: str) -> bool:
    if pattern.endswith("/*"):
        return name.startswith(pattern[:-1])
    return name == repository(pattern)


def _same(one: PullSecret, other: PullSecret) -> bool:
    by_hash = bool(one.credential_hash) and one.credential_hash == other.credential_hash
    return by_hash or (bool(one.uid) and _place(one) == _place(other))


def _place(secret: PullSecret) -> tuple[str, str, str]:
    return secret.uid, secret.namespace, secret.name


class ImageAccess:
    """The records on disk, below `<root>/image_manager`."""

    def __init__(self, root: Path, *, policy: str, allowlist: Iterable[str] = ()) -> None:
        self._root = root / "image_manager"
        self._policy = policy
        self._allowlist = tuple(allowlist)

    def allowed(self, image: str, ref: str, shown: Iterable[Credential]) -> bool:
        """Whether a pod that shows these credentials may use the image `ref` under the name `image`."""
        record = self._read(ref)
        ours = record is not None or self._intent(image).exists()
        if not must_verify(image, ours=ours, policy=self._policy, allowlist=self._allowlist):
            return True
        return record is not None and opens(record.credential_mapping.get(repository(image)), shown)

    def begin(self, image: str) -> None:
        """A pull of that name begins."""
        body = {"apiVersion": API_VERSION, "kind": "ImagePullIntent", "image": image}
        # A power cut loses the image as well, whose layers are synced later.
        self._write(self._intent(image), json.dumps(body).encode(), sync=False)

    def pulled(self, image: str, ref: str, opened: Credential | None) -> None:
        """A pull of that name brought the image `ref`."""
        before = self._read(ref)
        record = learned(before or PulledRecord(image_ref=ref), image, opened)
        if record == before or self._write(self._file("pulled", ref), msgspec.json.encode(record)):
            self._intent(image).unlink(missing_ok=True)

    def ended(self, image: str) -> None:
        """A pull of that name brought nothing."""
        self._intent(image).unlink(missing_ok=True)

    def prune(self, known: Collection[str], *, since: float) -> None:
        """Forget pulls of images that are gone.

        Args:
            known: ids of the images on the node, as of `since`.
            since: Unix seconds; what was written later may be of an image that came later.
        """
        for path in sorted((self._root / "pulled").glob("sha256-*")):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=PulledRecord)
                if record.image_ref not in known and path.stat().st_mtime < since:
                    path.unlink()
            except (OSError, msgspec.DecodeError) as exc:  # one that cannot be read says nothing to nobody
                log.warning("pull record left alone path=%s error=%s", path, exc)

    def _read(self, ref: str) -> PulledRecord | None:
        path = self._file("pulled", ref)
        try:
            return msgspec.json.decode(path.read_bytes(), type=PulledRecord)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as exc:
            log.warning("pull record not readable, credentials are asked for path=%s error=%s", path, exc)
            return PulledRecord(image_ref=ref)

    def _write(self, path: Path, body: bytes, *, sync: bool = True) -> bool:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, body, sync=sync)
        except (HostError, OSError) as exc:
            log.warning("pull not recorded path=%s error=%s", path, exc)
            return False
        return True

    def _intent(self, image: str) -> Path:
        return self._file("pulling", image)

    def _file(self, kind: str, name: str) -> Path:
        return self._root / kind / f"sha256-{hashlib.sha256(name.encode()).hexdigest()}"
