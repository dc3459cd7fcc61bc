"""podCertificate projections: a private key made here and a certificate that a signer of the cluster issues.

The key never leaves the node's memory and the pod's tmpfs. A request is made once and asked after until it is
decided; from `beginRefreshAt` on a new key and certificate are requested while the old ones stay in use.

Source: Kubernetes API, core/v1 PodCertificateProjection, certificates/v1 PodCertificateRequest; KEP-4317.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.api.errors import ApiError
from agent.api.times import parse_time
from agent.api.trust import PodCertificateRequestSpec
from agent.volumes import atomic
from agent.volumes.base import Certificates, Unready

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

    from agent.api.structs import Pod, PodCertificateProjection
    from agent.api.trust import PodCertificateRequest
    from host.clocks import Clock

_log = logging.getLogger(__name__)
_LOOKS, _PAUSE = 25, 0.2
"""How often, and how many seconds apart, a request is asked after before the pod waits for its next try."""


@dataclass(frozen=True)
class Credential:
    """A key (PKCS#8) and its certificate chain, both PEM; renewal and end in Unix seconds."""

    key: bytes
    chain: bytes
    renew_at: float
    expires_at: float

    def __repr__(self) -> str:
        return f"Credential(expires_at={self.expires_at})"


@dataclass(frozen=True)
class _Pending:
    name: str
    key: bytes

    def __repr__(self) -> str:
        return f"_Pending({self.name})"


_Key = tuple[str, ...]
"""The pod's UID, signer, key type, and paths."""


class PodCertificates:
    """The certificates of all pods on this node.

    Args:
        certificates: where requests go; None on a node without API.
        clock: wall time, because validity is wall-clock time.
    """

    def __init__(self, certificates: Certificates | None, *, clock: Clock) -> None:
        self._certificates = certificates
        self._clock = clock
        self._issued: dict[_Key, Credential] = {}
        self._pending: dict[_Key, _Pending] = {}

    async def collect(
        self, pod: Pod, projection: PodCertificateProjection, *, mode: int
    ) -> dict[str, atomic.File]:
        """The files of one projection.

        Raises:
            Unready: refused, or not issued yet.
        """
        found = await self._get(pod, projection)
        contents = {
            projection.credential_bundle_path: found.key + found.chain,
            projection.key_path: found.key,
            projection.certificate_chain_path: found.chain,
        }
        return {atomic.check_path(path): atomic.File(data, mode) for path, data in contents.items() if path}

    def due(self) -> set[str]:
        """UIDs of pods with a certificate that is due for renewal."""
        now = self._clock.now()
        return {key[0] for key, found in self._issued.items() if now >= found.renew_at}

    def forget(self, pod_uid: str) -> None:
        """Drop a pod's keys."""
        for key in [key for key in (*self._issued, *self._pending) if key[0] == pod_uid]:
            self._issued.pop(key, None)
            self._pending.pop(key, None)

    async def _get(self, pod: Pod, projection: PodCertificateProjection) -> Credential:
        key, now = _key(pod, projection), self._clock.now()
        old = self._issued.get(key)
        if old is not None and now < old.renew_at:
            return old
        try:
            found = await self._obtain(key, pod, projection)
        except (ApiError, Unready) as exc:
            if old is None or now >= old.expires_at:
                raise Unready(f"podCertificate of signer {projection.signer_name!r}: {exc}") from exc
            meta = pod.metadata
            _log.warning("certificate not renewed pod=%s/%s error=%s", meta.namespace, meta.name, exc)
            return old
        self._issued[key] = found
        return found

    async def _obtain(self, key: _Key, pod: Pod, projection: PodCertificateProjection) -> Credential:
        """Ask after the request under way, or make one.

        Raises:
            Unready: denied, failed, or not decided yet.
        """
        if self._certificates is None:
            raise Unready("this node stands alone, without an API server")
        namespace = pod.metadata.namespace
        if key not in self._pending:
            private, request = await asyncio.to_thread(make_request, projection.key_type)
            name = await self._certificates.request_certificate(pod, _spec(pod, projection, request))
            self._pending[key] = _Pending(name, private)
        pending = self._pending[key]
        for _ in range(_LOOKS):
            answer = await self._certificates.certificate_request(namespace, pending.name)
            try:
                chain = decided(answer, pending.name)
            except Unready:
                self._pending.pop(key, None)
                raise
            if answer is not None and chain:
                self._pending.pop(key, None)
                return _credential(pending.key, answer, self._clock.now())
            await self._clock.sleep(_PAUSE)
        raise Unready(f"podcertificaterequest {namespace}/{pending.name} waits for its signer")


def _key(pod: Pod, projection: PodCertificateProjection) -> _Key:
    paths = (projection.credential_bundle_path, projection.key_path, projection.certificate_chain_path)
    return (pod.metadata.uid, projection.signer_name, projection.key_type, *paths)


def _spec(pod: Pod, projection: PodCertificateProjection, request: bytes) -> PodCertificateRequestSpec:
    """All but what only the API knows: the UIDs of service account and node."""
    return PodCertificateRequestSpec(
        signer_name=projection.signer_name,
        pod_name=pod.metadata.name,
        pod_uid=pod.metadata.uid,
        service_account_name=pod.spec.service_account_name or "default",
        node_name=pod.spec.node_name,
        max_expiration_seconds=projection.max_expiration_seconds,
        stub_pkcs10_request=base64.b64encode(request).decode(),
        unverified_user_annotations=projection.user_annotations,
    )


def decided(request: PodCertificateRequest | None, name: str) -> str:
    """The issued chain, "" while nothing is decided.

    Raises:
        Unready: the signer said no, or the request is gone.
    """
    if request is None:
        raise Unready(f"podcertificaterequest {name} was deleted before it was decided")
    for condition in request.status.conditions:
        if condition.type in ("Denied", "Failed") and condition.status == "True":
            raise Unready(f"podcertificaterequest {name} {condition.type}: {condition.message}")
    issued = any(c.type == "Issued" and c.status == "True" for c in request.status.conditions)
    return request.status.certificate_chain if issued else ""


def _credential(key: bytes, answer: PodCertificateRequest, now: float) -> Credential:
    status = answer.status
    expires_at = parse_time(status.not_after) or now
    chain = status.certificate_chain.rstrip("\n") + "\n"
    return Credential(key, chain.encode(), parse_time(status.begin_refresh_at) or expires_at, expires_at)


def make_request(key_type: str) -> tuple[bytes, bytes]:
    """A new private key (PEM) and an empty certificate request for it (DER).

    Raises:
        Unready: a key type that is not one of the API's.
    """
    from cryptography import x509  # 20 ms of import that few nodes need
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    makers: dict[str, Callable[[], CertificateIssuerPrivateKeyTypes]] = {
        "RSA3072": lambda: rsa.generate_private_key(65537, 3072),
        "RSA4096": lambda: rsa.generate_private_key(65537, 4096),
        "ECDSAP256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "ECDSAP384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "ECDSAP521": lambda: ec.generate_private_key(ec.SECP521R1()),
        "ED25519": ed25519.Ed25519PrivateKey.generate,
    }
    if key_type not in makers:
        raise Unready(f"podCertificate keyType {key_type!r} is not one of {', '.join(makers)}")
    key = makers[key_type]()
    digest = None if key_type == "ED25519" else hashes.SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, digest)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, request.public_bytes(serialization.Encoding.DER)
