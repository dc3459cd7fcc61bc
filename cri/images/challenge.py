"""Registry authentication as pure functions: challenges, token addresses, token answers.

Source: RFC 9110 section 11.6.1 (WWW-Authenticate), distribution spec "Token Authentication".
What a registry asks for is not obeyed blindly: the token service must be https unless the registry
itself is plain http, and never a link-local address (CVE-2020-15157: cloud metadata services).
"""

import base64
import binascii
import ipaddress
import json
import re
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from cri.images.errors import AccessDenied
from cri.images.model import Credentials

_MAX_HEADER = 8192
_MAX_TOKEN = 64 << 10
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SPACE = re.compile(r"[ \t]*")


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """One authentication scheme on offer; scheme and parameter names in lower case."""

    scheme: str
    params: dict[str, str] = field(default_factory=dict)


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """Parse a WWW-Authenticate value; what is malformed ends the list, nothing is raised."""
    found: list[Challenge] = []
    text, position = header[:_MAX_HEADER], 0
    while position < len(text):
        position = _skip(text, position, " \t,")
        scheme = _TOKEN.match(text, position)
        if not scheme:
            break
        params, position = _params(text, scheme.end())
        found.append(Challenge(scheme=scheme.group().lower(), params=params))
    return tuple(found)


def _params(text: str, position: int) -> tuple[dict[str, str], int]:
    params: dict[str, str] = {}
    while True:
        start = _skip(text, position, " \t,")
        name = _TOKEN.match(text, start)
        if not name:
            return params, start
        equals = _SPACE.match(text, name.end())
        after = equals.end() if equals else name.end()
        if text[after : after + 1] != "=":
            return params, start  # a token without "=" is the next scheme
        after = _skip(text, after + 1, " \t")
        quoted = _QUOTED.match(text, after)
        if quoted:
            value, position = re.sub(r"\\(.)", r"\1", quoted.group(1)), quoted.end()
        else:
            plain = _TOKEN.match(text, after)
            if not plain:
                return params, len(text)
            value, position = plain.group(), plain.end()
        params.setdefault(name.group().lower(), value)


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def basic(credentials: Credentials | None) -> str:
    """The Basic authorization for credentials, or an empty string when they hold no user."""
    if credentials is None:
        return ""
    username, password = user_of(credentials)
    if not username and not password:
        return ""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def user_of(credentials: Credentials) -> tuple[str, str]:
    """User name and password, from their fields or from `auth`; AccessDenied when `auth` is malformed."""
    if credentials.username or credentials.password or not credentials.auth:
        return credentials.username, credentials.password
    try:
        text = base64.b64decode(credentials.auth, validate=True).decode()
    except (binascii.Error, ValueError) as exc:
        raise AccessDenied("credentials: auth is not base64 of user:password") from exc
    username, colon, password = text.rstrip("\0").partition(":")
    if not colon:
        raise AccessDenied("credentials: auth is not base64 of user:password")
    return username, password


def applies(credentials: Credentials, netloc: str, domain: str) -> bool:
    """Whether credentials are meant for the server `netloc` of the registry `domain`."""
    address = credentials.server_address
    if not address:
        return True
    try:
        host = urlsplit(address if "://" in address else f"//{address}").netloc.rpartition("@")[2]
    except ValueError:
        return False
    names = {netloc, domain}
    if domain == "docker.io":
        names |= {"index.docker.io", "registry-1.docker.io"}
    return host in names


def token_url(challenge: Challenge, *, registry_scheme: str, repository: str) -> str:
    """The address to ask for a bearer token; AccessDenied when it is not a place to send secrets to."""
    realm = challenge.params.get("realm", "")
    try:
        parts = urlsplit(realm)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as exc:
        raise AccessDenied("registry names a malformed token service") from exc
    allowed = ("https",) if registry_scheme == "https" else ("https", "http")
    if parts.scheme not in allowed or not host or parts.username is not None or not realm.isprintable():
        raise AccessDenied("registry names a token service that is not an https address")
    if is_link_local(host):
        raise AccessDenied("registry names a token service on a link-local address")
    query = {"scope": challenge.params.get("scope") or f"repository:{repository}:pull"}
    if service := challenge.params.get("service"):
        query["service"] = service
    joint = "&" if parts.query else "?"
    return f"{realm.partition('#')[0]}{joint}{urlencode(query)}"


def is_link_local(host: str) -> bool:
    """Whether a host is written as a link-local address (169.254/16, fe80::/10), mapped ones included."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_link_local


def parse_token(data: bytes) -> str:
    """The bearer token of a token service's answer; AccessDenied when there is none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise AccessDenied("token service answered something that is not JSON") from exc
    if not isinstance(document, dict):
        raise AccessDenied("token service answered no token")
    token = document.get("token") or document.get("access_token")
    if not isinstance(token, str) or not token or len(token) > _MAX_TOKEN:
        raise AccessDenied("token service answered no usable token")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise AccessDenied("token service answered a malformed token")
    return token
