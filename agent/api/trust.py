"""The certificate half of the API for pods: trust anchors, and certificates of a pod's own.

Source: k8s.io/api/certificates/v1/types.go (API reference v1.37).
"""

from __future__ import annotations

import msgspec

from agent.api.meta import Condition, Object, Struct


class ClusterTrustBundleSpec(Struct, frozen=True, kw_only=True):
    signer_name: str = ""
    trust_bundle: str = ""


class ClusterTrustBundle(Object, frozen=True, kw_only=True):
    spec: ClusterTrustBundleSpec = ClusterTrustBundleSpec()


class PodCertificateRequestSpec(Struct, frozen=True, kw_only=True):
    """`stub_pkcs10_request`: base64 of an empty, self-signed request (DER) that carries the public key."""

    signer_name: str = ""
    pod_name: str = ""
    pod_uid: str = msgspec.field(name="podUID", default="")
    service_account_name: str = ""
    service_account_uid: str = msgspec.field(name="serviceAccountUID", default="")
    node_name: str = ""
    node_uid: str = msgspec.field(name="nodeUID", default="")
    max_expiration_seconds: int | None = None
    stub_pkcs10_request: str = msgspec.field(name="stubPKCS10Request", default="")
    unverified_user_annotations: dict[str, str] = {}


class PodCertificateRequestStatus(Struct, frozen=True, kw_only=True):
    conditions: tuple[Condition, ...] = ()
    certificate_chain: str = ""
    not_before: str | None = None
    begin_refresh_at: str | None = None
    not_after: str | None = None


class PodCertificateRequest(Object, frozen=True, kw_only=True):
    spec: PodCertificateRequestSpec = PodCertificateRequestSpec()
    status: PodCertificateRequestStatus = PodCertificateRequestStatus()
