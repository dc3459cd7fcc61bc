"""Asking the cluster for a certificate: key, CertificateSigningRequest, wait for approval.

Source: https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/ (signer names,
usages).
"""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
import logging
import os
import random
import time
from contextlib import aclosing
from pathlib import Path

from agent.api.client import ApiClient
from agent.api.meta import ObjectMeta
from agent.api.resources import CERTIFICATE_SIGNING_REQUESTS
from agent.api.structs import CertificateSigningRequest, CertificateSigningRequestSpec
from agent.api.watch import Selection, watch_forever
from host.files import write_atomic

log = logging.getLogger(__name__)
CLIENT_SIGNER = "kubernetes.io/kube-apiserver-client-kubelet"
SERVING_SIGNER = "kubernetes.io/kubelet-serving"


class Denied(Exception):
    """The request was denied or failed; the text says why."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the certificate is for."""

    signer: str
    node_name: str
    hostnames: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()

    @property
    def usages(self) -> tuple[str, ...]:
        """Exactly the usages the signer accepts for an elliptic-curve key."""
        return ("digital signature", "server auth" if self.signer == SERVING_SIGNER else "client auth")


def new_request(wanted: Wanted) -> tuple[bytes, bytes]:
    """A fresh P-256 key and a request for it, both PEM. Blocking for a few milliseconds."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{wanted.node_name}"),
        ]
    )
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in wanted.hostnames]
    names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in wanted.ips]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    request = builder.sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, request.public_bytes(serialization.Encoding.PEM)


async def obtain(client: ApiClient, wanted: Wanted, request: bytes) -> bytes:
    """Submit the request and wait, as long as it takes, for the certificate chain (PEM).

    Raises:
        ApiError: it could not be submitted.
        Denied: an approver or the signer said no.
    """
    csr = CertificateSigningRequest(
        metadata=ObjectMeta(generate_name="node-csr-"),
        spec=CertificateSigningRequestSpec(
            request=base64.b64encode(request).decode(), signer_name=wanted.signer, usages=wanted.usages
        ),
    )
    made = await client.create(CERTIFICATE_SIGNING_REQUESTS, csr)
    name = made.metadata.name
    log.info(
        "certificate requested csr=%s signer=%s hint=%r",
        name,
        wanted.signer,
        f"kubectl certificate approve {name}",
    )
    selection = Selection(CERTIFICATE_SIGNING_REQUESTS, field_selector=f"metadata.name={name}")
    async with aclosing(watch_forever(client, selection)) as events:
        async for event in events:
            chain = _issued(event.obj) if event.obj is not None else b""
            if chain:
                log.info("certificate issued csr=%s", name)
                return chain
    raise AssertionError("watch_forever does not end")


def _issued(csr: CertificateSigningRequest) -> bytes:
    """The certificate, b"" while there is none. Raises Denied."""
    for condition in csr.status.conditions:
        if condition.type in ("Denied", "Failed"):
            raise Denied(f"certificate request {csr.metadata.name} {condition.type}: {condition.message}")
    return base64.b64decode(csr.status.certificate)


def expiry(chain: bytes) -> tuple[float, float]:
    """Validity of the first certificate of a PEM chain, as Unix seconds (from, until). Raises ValueError."""
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(chain)
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def due(start: float, end: float) -> float:
    """When to renew a certificate of that validity: after 70 to 90 % of it, at random to spread the load."""
    return start + (end - start) * random.uniform(0.7, 0.9)  # noqa: S311


def store(pki: Path, chain: bytes, key: bytes, *, prefix: str, now: float) -> Path:
    """Write chain and key into `<prefix>-<date>.pem` (0600) and move the link `<prefix>-current.pem` to it.

    Answers the link. Raises HostError, OSError.
    """
    pki.mkdir(mode=0o755, parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%d-%H-%M-%S", time.gmtime(now))
    target = pki / f"{prefix}-{stamp}.pem"
    write_atomic(target, chain.rstrip(b"\n") + b"\n" + key, mode=0o600)
    link = pki / f"{prefix}-current.pem"
    fresh = pki / f".{link.name}.new"
    fresh.unlink(missing_ok=True)
    os.symlink(target.name, fresh)
    os.replace(fresh, link)
    return link
