"""Projected trust anchors and pod certificates, where the test plays the signer."""

import base64
import datetime
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kit import container, pod, until

MOUNT = [{"name": "v", "mountPath": "/v", "readOnly": True}]
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the test's authority")])


def certificate(public, key, *, subject=NAME):
    """Signed with `key`, and an authority's own unless it is for another subject."""
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .issuer_name(NAME)
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(hours=24))
        .add_extension(x509.BasicConstraints(ca=subject == NAME, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


def pem(made):
    return made.public_bytes(serialization.Encoding.PEM).decode()


def projected(**source):
    return [{"name": "v", "projected": {"sources": [source]}}]


@pytest.fixture
def authority():
    return ec.generate_private_key(ec.SECP256R1())


def test_trust_anchors_follow_their_bundle(ns, authority):
    bundle = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "ClusterTrustBundle",
        "metadata": {"name": ns.name},
        "spec": {"trustBundle": pem(certificate(authority.public_key(), authority))},
    }
    ns.apply(bundle)
    try:
        source = {"name": ns.name, "path": "roots.pem"}
        ns.apply(pod("p", container(volumeMounts=MOUNT), volumes=projected(clusterTrustBundle=source)))
        ns.wait_running("p")
        assert ns.sh("p", "cat /v/roots.pem") == bundle["spec"]["trustBundle"]
        bundle["spec"]["trustBundle"] += pem(certificate(authority.public_key(), authority))
        ns.apply(bundle)
        until("both anchors", lambda: ns.sh("p", "cat /v/roots.pem") == bundle["spec"]["trustBundle"])
    finally:
        ns.kubectl("delete", "clustertrustbundle", ns.name, "--wait=false")


def test_a_pod_gets_a_certificate_for_its_own_key(ns, authority):
    wanted = {"signerName": "example.com/test", "keyType": "ECDSAP256", "credentialBundlePath": "own.pem"}
    ns.apply(pod("p", container(volumeMounts=MOUNT), volumes=projected(podCertificate=wanted)))

    def requests():
        return json.loads(ns.kubectl("get", "podcertificaterequests", "-o", "json"))["items"]

    (request,) = until("a request", requests)
    assert request["spec"]["podName"] == "p"
    stub = x509.load_der_x509_csr(base64.b64decode(request["spec"]["stubPKCS10Request"]))
    made = certificate(stub.public_key(), authority, subject=x509.Name([]))
    begin, end = made.not_valid_before_utc, made.not_valid_after_utc
    moment = "%Y-%m-%dT%H:%M:%SZ"
    status = {
        "conditions": [
            {
                "type": "Issued",
                "status": "True",
                "reason": "Test",
                "message": "",
                "lastTransitionTime": begin.strftime(moment),
            }
        ],
        "certificateChain": pem(made),
        "notBefore": begin.strftime(moment),
        "beginRefreshAt": (begin + (end - begin) / 2).strftime(moment),
        "notAfter": end.strftime(moment),
    }
    ns.kubectl(
        "patch",
        "podcertificaterequest",
        request["metadata"]["name"],
        "--subresource=status",
        "--type=merge",
        "-p",
        json.dumps({"status": status}),
    )
    ns.wait_running("p")
    text = ns.sh("p", "cat /v/own.pem")
    key = serialization.load_pem_private_key(text.encode(), None)
    assert key.public_key() == stub.public_key()
    assert text.endswith(pem(made))
