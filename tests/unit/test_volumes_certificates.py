"""Trust anchors and certificates of the pods' own in projected volumes."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from volume_kit import Node, fails, pod, texts

from agent.api.errors import NotFound, Unreachable
from agent.api.meta import Condition, LabelSelector, LabelSelectorRequirement
from agent.api.structs import (
    ClusterTrustBundleProjection,
    Pod,
    PodCertificateProjection,
    ProjectedVolumeSource,
    Volume,
    VolumeProjection,
)
from agent.api.times import format_time
from agent.api.trust import PodCertificateRequest, PodCertificateRequestSpec, PodCertificateRequestStatus
from agent.volumes.base import Unready
from agent.volumes.pod_certificates import Credential, make_request
from agent.volumes.trust_bundle import anchors, selector_text

ONE, TWO = (f"-----BEGIN CERTIFICATE-----\n{word}\n-----END CERTIFICATE-----\n" for word in ("T25l", "VHdv"))


class FakeCertificates:
    """A signer that decides when it is told to."""

    def __init__(self) -> None:
        self.bundles: dict[str, str] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.requests: list[PodCertificateRequestSpec] = []
        self.decisions: dict[str, PodCertificateRequestStatus] = {}
        self.down = False

    async def trust_bundles(self, name: str, *, signer: str, labels: str | None) -> list[str]:
        if name:
            if name not in self.bundles:
                raise NotFound("no such bundle", status=404)
            return [self.bundles[name]]
        self.asked.append((signer, labels))
        return [] if labels is None else list(self.bundles.values())

    async def request_certificate(self, pod: Pod, spec: PodCertificateRequestSpec) -> str:
        if self.down:
            raise Unreachable("apiserver is down")
        self.requests.append(spec)
        return f"req{len(self.requests)}"

    async def certificate_request(self, namespace: str, name: str) -> PodCertificateRequest | None:
        return PodCertificateRequest(status=self.decisions.get(name, PodCertificateRequestStatus()))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    (tmp_path / "host").mkdir()
    return Node(tmp_path, certificates=FakeCertificates())


def projected(**source: Any) -> Volume:
    return Volume(name="v", projected=ProjectedVolumeSource(sources=(VolumeProjection(**source),)))


def bundle(**fields: Any) -> Volume:
    return projected(cluster_trust_bundle=ClusterTrustBundleProjection(path="ca.pem", **fields))


async def test_a_bundle_by_name(node: Node) -> None:
    assert 'clustertrustbundle "roots" not found' in await fails(node, pod(bundle(name="roots")))
    prepared = await node.manager.prepare(pod(bundle(name="roots", optional=True)))
    assert texts(prepared["v"].host_path)["ca.pem"] == ""
    node.certificates.bundles["roots"] = f"A comment\n{ONE}"
    await node.manager.refresh(pod(bundle(name="roots")))
    assert (prepared["v"].host_path / "ca.pem").read_text() == ONE


async def test_bundles_of_a_signer(node: Node) -> None:
    node.certificates.bundles = {"a": ONE, "b": ONE + TWO}
    chosen = bundle(signer_name="x/y", label_selector=LabelSelector(match_labels={"k": "v"}))
    prepared = await node.manager.prepare(pod(chosen))
    assert (prepared["v"].host_path / "ca.pem").read_text() == ONE + TWO
    assert node.certificates.asked == [("x/y", "k=v")]
    assert "no clustertrustbundle of signer 'x/y'" in await fails(node, pod(bundle(signer_name="x/y")))


def test_anchors_are_normalised() -> None:
    long = base64.b64encode(bytes(range(100))).decode()
    loose = f"# x\n-----BEGIN CERTIFICATE-----\n{long[:10]}\n{long[10:]}\n-----END CERTIFICATE-----"
    lines = anchors([loose, loose, ONE]).splitlines()
    assert [len(line) for line in lines[1:4]] == [64, 64, 8]
    assert lines.count("-----BEGIN CERTIFICATE-----") == 2


def test_label_selectors_as_text() -> None:
    requirements = (
        LabelSelectorRequirement(key="a", operator="In", values=("1", "2")),
        LabelSelectorRequirement(key="b", operator="NotIn", values=("3",)),
        LabelSelectorRequirement(key="c", operator="Exists"),
        LabelSelectorRequirement(key="d", operator="DoesNotExist"),
    )
    selector = LabelSelector(match_labels={"k": "v"}, match_expressions=requirements)
    assert selector_text(selector) == "k=v,a in (1,2),b notin (3),c,!d"
    assert selector_text(LabelSelector()) == ""
    assert selector_text(None) is None
    with pytest.raises(Unready):
        selector_text(LabelSelector(match_expressions=(LabelSelectorRequirement(key="a", operator="Gt"),)))


CERTIFICATE = projected(
    pod_certificate=PodCertificateProjection(
        signer_name="x/y", key_type="ECDSAP256", credential_bundle_path="bundle.pem", key_path="key.pem"
    )
)


def issued(node: Node, chain: str, *, life: float = 1000.0) -> PodCertificateRequestStatus:
    now = node.clock.now()
    return PodCertificateRequestStatus(
        conditions=(Condition(type="Issued", status="True"),),
        certificate_chain=chain,
        begin_refresh_at=format_time(now + life / 2),
        not_after=format_time(now + life),
    )


async def prepare_in_vain(node: Node) -> str:
    """The failure to prepare, when all the time has passed for which a request is asked after."""
    task = asyncio.create_task(fails(node, pod(CERTIFICATE)))
    while not task.done():
        await node.clock.advance(0.2)
    return task.result()


async def test_a_certificate_is_requested_once_and_its_key_stays_private(node: Node) -> None:
    assert "podcertificaterequest ns/req1 waits for its signer" in await prepare_in_vain(node)
    node.certificates.decisions["req1"] = issued(node, ONE)
    place = (await node.manager.prepare(pod(CERTIFICATE)))["v"].host_path
    (request,) = node.certificates.requests
    assert (request.signer_name, request.pod_name, request.pod_uid) == ("x/y", "p", "u1")
    assert request.service_account_name == "robot"
    public = x509.load_der_x509_csr(base64.b64decode(request.stub_pkcs10_request)).public_key()
    key = serialization.load_pem_private_key((place / "key.pem").read_bytes(), None)
    assert key.public_key() == public
    assert (place / "bundle.pem").read_text() == (place / "key.pem").read_text() + ONE
    assert "PRIVATE" not in repr(Credential(b"PRIVATE", b"", 0.0, 0.0))


async def test_a_certificate_is_renewed_and_the_old_one_stays_meanwhile(node: Node) -> None:
    node.certificates.decisions["req1"] = issued(node, ONE)
    place = (await node.manager.prepare(pod(CERTIFICATE)))["v"].host_path
    await node.clock.advance(499)
    await node.manager.refresh(pod(CERTIFICATE))
    await node.clock.advance(2)
    node.certificates.down = True
    await node.manager.refresh(pod(CERTIFICATE))
    assert (place / "bundle.pem").read_text().endswith(ONE)
    node.certificates.down = False
    node.certificates.decisions["req2"] = issued(node, TWO)
    await node.manager.refresh(pod(CERTIFICATE))
    assert (place / "bundle.pem").read_text().endswith(TWO)
    assert len(node.certificates.requests) == 2


@pytest.mark.parametrize("verdict", ["Denied", "Failed"])
async def test_a_refused_certificate_is_told_and_asked_for_anew(node: Node, verdict: str) -> None:
    said = Condition(type=verdict, status="True", message="not for you")
    node.certificates.decisions["req1"] = PodCertificateRequestStatus(conditions=(said,))
    message = await fails(node, pod(CERTIFICATE))
    assert f"podcertificaterequest req1 {verdict}: not for you" in message
    node.certificates.decisions["req2"] = issued(node, ONE)
    await node.manager.prepare(pod(CERTIFICATE))


@pytest.mark.parametrize("kind", ["RSA3072", "ECDSAP384", "ECDSAP521", "ED25519"])
def test_key_types(kind: str) -> None:
    _, request = make_request(kind)
    assert x509.load_der_x509_csr(request).is_signature_valid


def test_a_key_type_that_is_not_one() -> None:
    with pytest.raises(Unready, match="keyType 'DSA' is not one of RSA3072"):
        make_request("DSA")
