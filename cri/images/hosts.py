"""Where to look for a repository: the operator's mirrors, then the registry itself.

Reads containerd's layout, `<dir>/<host>/hosts.toml` with `<dir>/_default/hosts.toml` as fallback, on
every pull, so a change needs no restart. Plain http is used for a host only when its file says so.
Source: containerd docs/hosts.md.
"""

import ssl
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cri.images.reference import DEFAULT_DOMAIN
from host.errors import InputError

_CAPABILITIES = frozenset(("pull", "resolve", "push"))
_MAX_FILE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One server to ask."""

    scheme: str
    netloc: str
    """host[:port]"""
    path: str = "/v2"
    capabilities: frozenset[str] = frozenset(("pull", "resolve"))
    skip_verify: bool = False
    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    """Pairs of certificate and key file; the key may be empty when the certificate file has both."""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    mirror: bool = False
    """True when the server was not derived from the image's own name: requests then carry `ns`."""

    @property
    def origin(self) -> str:
        """`https://host:port`."""
        return f"{self.scheme}://{self.netloc}"

    def ssl_context(self) -> ssl.SSLContext | None:
        """TLS settings of this server; None for plain http. InputError when a named file is unusable."""
        if self.scheme == "http":
            return None
        try:
            context = ssl.create_default_context()
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            for file in self.ca:
                context.load_verify_locations(file)
            for certificate, key in self.client:
                context.load_cert_chain(certificate, key or None)
        except OSError as exc:
            raise InputError(f"registry {self.netloc}: certificate file is unusable: {exc}") from exc
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def endpoints(domain: str, config_dir: Path | None) -> tuple[Endpoint, ...]:
    """Servers to ask for repositories of `domain`, best first; InputError when a hosts.toml is malformed."""
    own = "registry-1.docker.io" if domain == DEFAULT_DOMAIN else domain
    default = Endpoint(scheme="https", netloc=own)
    file = _find(domain, config_dir) if config_dir else None
    if file is None:
        return (default,)
    return parse_hosts(_read(file), domain=domain, default=default, base=file.parent, what=str(file))


def parse_hosts(text: str, *, domain: str, default: Endpoint, base: Path, what: str) -> tuple[Endpoint, ...]:
    """Parse a hosts.toml.

    Args:
        text: the file.
        domain: the registry it is for.
        default: the server to use when the file names none.
        base: directory that relative certificate paths start from.
        what: the file's name, for messages.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise InputError(f"{what}: {exc}") from exc
    hosts = document.pop("host", {})
    if not isinstance(hosts, dict):
        raise InputError(f"{what}: host must be a table of servers")
    found = [_endpoint(url, table, domain=domain, base=base, what=what) for url, table in hosts.items()]
    server = document.pop("server", "")
    last = default
    if server or document:
        last = _endpoint(server or default.origin, document, domain=domain, base=base, what=what)
    if (last.origin, last.path) not in {(item.origin, item.path) for item in found}:
        found.append(last)
    return tuple(found)


def _find(domain: str, config_dir: Path) -> Path | None:
    host, colon, port = domain.rpartition(":")
    names = [domain, "_default"]
    if colon and port.isdigit():
        names.insert(0, f"{host}_{port}_")  # the order of containerd
    for name in names:
        file = config_dir / name / "hosts.toml"
        if file.is_file():
            return file
    return None


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            raise InputError(f"{file}: larger than {_MAX_FILE} bytes")
        return data.decode()
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{file}: cannot be read: {exc}") from exc


def _endpoint(url: Any, table: Any, *, domain: str, base: Path, what: str) -> Endpoint:
    if not isinstance(table, dict):
        raise InputError(f"{what}: host {url!r} must be a table")
    scheme, netloc, path = _split(url, what)
    wanted = table.get("capabilities", ["pull", "resolve"])
    if not isinstance(wanted, list) or not set(wanted) <= _CAPABILITIES:
        raise InputError(f"{what}: {url}: capabilities must be a list of pull, resolve, push")
    skip_verify = table.get("skip_verify", False)
    if not isinstance(skip_verify, bool):
        raise InputError(f"{what}: {url}: skip_verify must be true or false")
    if not table.get("override_path", False) and not path.endswith("/v2"):
        path += "/v2"
    own = {domain, "registry-1.docker.io"} if domain == DEFAULT_DOMAIN else {domain}
    return Endpoint(
        scheme=scheme,
        netloc=netloc,
        path=path,
        capabilities=frozenset(wanted),
        skip_verify=skip_verify,
        ca=tuple(_path(base, item) for item in _strings(table.get("ca"), f"{what}: {url}: ca")),
        client=_client(table.get("client"), base=base, what=f"{what}: {url}: client"),
        headers=_headers(table.get("header"), f"{what}: {url}: header"),
        mirror=netloc not in own,
    )


def _split(url: Any, what: str) -> tuple[str, str, str]:
    text = url if isinstance(url, str) else ""
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        port = parts.port
    except ValueError as exc:
        raise InputError(f"{what}: server {text!r} is not an address") from exc
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise InputError(f"{what}: server {parts.hostname!r} must be http(s)://host[:port][/path]")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts.scheme, f"{host}:{port}" if port else host, parts.path.rstrip("/")


def _strings(value: Any, what: str) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else (value or [])
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise InputError(f"{what} must be a path or a list of paths")
    return tuple(items)


def _client(value: Any, *, base: Path, what: str) -> tuple[tuple[str, str], ...]:
    items = [value] if isinstance(value, str) else (value or [])
    pairs = []
    for item in items if isinstance(items, list) else [None]:
        pair = [item, ""] if isinstance(item, str) else item
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(word, str) for word in pair):
            raise InputError(f"{what} must be a path or pairs of certificate and key paths")
        pairs.append((_path(base, pair[0]), _path(base, pair[1]) if pair[1] else ""))
    return tuple(pairs)


def _headers(value: Any, what: str) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a table")
    pairs = []
    for name, texts in value.items():
        for text in _strings(texts, what):
            if not (name + text).isprintable():
                raise InputError(f"{what}: {name!r} has control characters")
            pairs.append((name, text))
    return tuple(pairs)


def _path(base: Path, text: str) -> str:
    return str(base / text)
