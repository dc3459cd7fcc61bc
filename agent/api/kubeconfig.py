"""Reading (and writing) a kubeconfig: which server, which CA, which credentials.

The `kubernetes` package has a loader, but importing it brings 20 MB of model classes and half a second of CPU
into a daemon that uses neither, so the dozen fields a node's kubeconfig has are read here. What a node agent
should not do, such as running a credential plug-in, is refused by name instead of being ignored.

Source: https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from pathlib import Path
from typing import Any

import yaml

from agent.api import yamldoc
from host.errors import InputError
from host.files import read_input

MAX_BYTES = 1 << 20
_UNSUPPORTED_USER = ("exec", "auth-provider", "username", "password", "as", "as-groups", "as-user-extra")


@dataclasses.dataclass(frozen=True)
class Access:
    """One server and the credentials for it. Paths are absolute; `*_data` wins over the path (client-go)."""

    server: str
    """URL of the API server, without a trailing slash."""
    source: str = ""
    """The file this came from, for messages."""
    ca_file: Path | None = None
    ca_data: bytes = b""
    """PEM certificates that may sign the server's; with neither file nor data the system's store is used."""
    tls_server_name: str = ""
    insecure: bool = False
    """Do not verify the server (`insecure-skip-tls-verify`); logged loudly by the transport."""
    cert_file: Path | None = None
    key_file: Path | None = None
    cert_data: bytes = b""
    key_data: bytes = dataclasses.field(default=b"", repr=False)
    token: str = dataclasses.field(default="", repr=False)
    token_file: Path | None = None
    namespace: str = "default"

    def files(self) -> tuple[Path, ...]:
        """The credential files that may be replaced while we run."""
        return tuple(path for path in (self.ca_file, self.cert_file, self.key_file) if path is not None)


def load(path: Path) -> Access:
    """Read the current context of a kubeconfig.

    Raises:
        InputError: the file cannot be read or lacks something; the message names file, field and fix.
    """
    raw = read_input(path, limit=MAX_BYTES, noun="kubeconfig")
    document = yamldoc.load(raw, where=f"kubeconfig {path}")
    if not isinstance(document, dict) or document.get("kind") != "Config":
        raise InputError(f"kubeconfig {path} is not a kubeconfig (kind: Config is missing)")
    return parse(document, path)


def parse(document: dict[str, Any], path: Path) -> Access:
    """The access that a decoded kubeconfig describes; relative file names are relative to `path`'s folder."""
    where = f"kubeconfig {path}"
    context = _named(document, "contexts", "context", str(document.get("current-context") or ""), where)
    cluster = _named(document, "clusters", "cluster", str(context.get("cluster") or ""), where)
    user = _named(document, "users", "user", str(context.get("user") or ""), where)
    for field in _UNSUPPORTED_USER:
        if user.get(field):
            fix = "use a client certificate, token or tokenFile"
            raise InputError(f"{where}: users.user.{field} is not supported, {fix}")
    if cluster.get("proxy-url"):
        raise InputError(f"{where}: clusters.cluster.proxy-url is not supported, connect directly")
    server = str(cluster.get("server") or "").rstrip("/")
    if not server.startswith(("https://", "http://")):
        raise InputError(f"{where}: clusters.cluster.server must be an https:// URL, not {server!r}")

    def file(record: dict[str, Any], key: str) -> Path | None:
        value = record.get(key)
        return (path.parent / str(value)).absolute() if value else None

    def data(record: dict[str, Any], key: str) -> bytes:
        try:
            return base64.b64decode(str(record.get(key) or ""), validate=True)
        except binascii.Error as exc:
            raise InputError(f"{where}: {key} is not base64") from exc

    return Access(
        server=server,
        source=str(path),
        ca_file=None if cluster.get("certificate-authority-data") else file(cluster, "certificate-authority"),
        ca_data=data(cluster, "certificate-authority-data"),
        tls_server_name=str(cluster.get("tls-server-name") or ""),
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
        cert_file=None if user.get("client-certificate-data") else file(user, "client-certificate"),
        key_file=None if user.get("client-key-data") else file(user, "client-key"),
        cert_data=data(user, "client-certificate-data"),
        key_data=data(user, "client-key-data"),
        token=str(user.get("token") or ""),
        token_file=file(user, "tokenFile"),
        namespace=str(context.get("namespace") or "default"),
    )


def _named(document: dict[str, Any], section: str, item: str, name: str, where: str) -> dict[str, Any]:
    entries = document.get(section)
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("name") == name:
            record = entry.get(item)
            return record if isinstance(record, dict) else {}
    raise InputError(f"{where}: no entry named {name!r} in {section} (see current-context)")


def render(access: Access, *, cert_file: Path, key_file: Path) -> bytes:
    """A kubeconfig for the same server that uses a client certificate and key kept in files."""
    cluster: dict[str, Any] = {"server": access.server}
    if access.ca_data:
        cluster["certificate-authority-data"] = base64.b64encode(access.ca_data).decode()
    elif access.ca_file:
        cluster["certificate-authority"] = str(access.ca_file)
    if access.tls_server_name:
        cluster["tls-server-name"] = access.tls_server_name
    if access.insecure:
        cluster["insecure-skip-tls-verify"] = True
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default-cluster", "cluster": cluster}],
        "users": [
            {
                "name": "default-auth",
                "user": {"client-certificate": str(cert_file), "client-key": str(key_file)},
            }
        ],
        "contexts": [
            {
                "name": "default-context",
                "context": {
                    "cluster": "default-cluster",
                    "user": "default-auth",
                    "namespace": access.namespace,
                },
            }
        ],
        "current-context": "default-context",
    }
    return yaml.safe_dump(document, sort_keys=False).encode()
