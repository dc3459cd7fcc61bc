"""The serving certificate of port 10250, and the TLS rules of the port.

Configured files are used as they are. Otherwise a self-signed certificate is made, with the node's names and
every node address as IP SANs (without them metrics-server and others can only turn verification off), and
kept in `<root>/pki` until it expires or an address changes.

Source: RFC 5280 4.2.1.6 (subjectAltName); kubelet's names kubelet.crt and kubelet.key.
"""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path

from host.errors import InputError
from host.files import write_atomic

log = logging.getLogger(__name__)
LIFETIME = datetime.timedelta(days=365)
RENEW_BEFORE = datetime.timedelta(days=30)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Certificate (chain) and key files, PEM."""

    cert: Path
    key: Path


def server_context(pair: Pair, *, client_ca: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or newer with forward secrecy; a client certificate is asked for, and verified when sent.

    Raises:
        InputError: a file cannot be used; the message names it and its field.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        context.load_cert_chain(pair.cert, pair.key)
    except (OSError, ssl.SSLError) as exc:
        raise InputError(f"serving certificate {pair.cert} with key {pair.key}: {exc}") from exc
    if client_ca is not None:
        try:
            context.load_verify_locations(cafile=client_ca)
        except (OSError, ssl.SSLError) as exc:
            raise InputError(f"authentication.x509.clientCAFile {client_ca}: {exc}") from exc
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def ensure_self_signed(folder: Path, *, hostname: str, ips: Sequence[str]) -> Pair:
    """The pair in `folder`, made anew when it is missing, expires soon, or lacks one of the names.

    Blocking (key generation, files): call it in a thread. Raises HostError when the folder cannot be written.
    """
    pair = Pair(folder / "kubelet.crt", folder / "kubelet.key")
    if not usable(pair, hostname, ips):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        cert, key = self_signed(hostname=hostname, ips=ips, now=datetime.datetime.now(datetime.UTC))
        write_atomic(pair.key, key, mode=0o600)
        write_atomic(pair.cert, cert, mode=0o644)
        log.info("serving certificate made file=%s names=%s", pair.cert, ",".join((hostname, *ips)))
    return pair


def usable(pair: Pair, hostname: str, ips: Sequence[str]) -> bool:
    """Whether the pair fits together, names all of these, and does not expire within 30 days. Blocking."""
    # cryptography takes 0.1 s to import and is needed at start and for certificates only.
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(pair.cert.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pair.cert, pair.key)
    except (OSError, ValueError, ssl.SSLError, x509.ExtensionNotFound):
        return False
    present = {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return (
        left > RENEW_BEFORE
        and hostname in names.get_values_for_type(x509.DNSName)
        and {str(ipaddress.ip_address(ip)) for ip in ips} <= present
    )


def self_signed(*, hostname: str, ips: Sequence[str], now: datetime.datetime) -> tuple[bytes, bytes]:
    """A certificate and its key, both PEM: P-256, server use only, one year."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname[:64])])
    names: list[x509.GeneralName] = [x509.DNSName(hostname)]
    names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return certificate.public_bytes(serialization.Encoding.PEM), private
