"""httpGet probes: one GET on a connection of its own; 200 to 399 is success.

A client of our own, because a probe must send exactly the headers the spec gives (a Host header included),
use no proxy, reuse nothing, follow redirects only while they stay on the host, and be cheap a hundred times a
second. HTTP/1.1 only. Certificates are not checked: the probe asks for an answer, not for an identity.

`render_request` and `parse_head` do no I/O.
"""

from __future__ import annotations

import asyncio
import functools
import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from agent.probes.measure import (
    OUTPUT_LIMIT,
    SUCCESS,
    USER_AGENT,
    Measurement,
    Outcome,
    Target,
    failure,
    resolve_port,
)
from agent.probes.tcp import dial_error, host_port

if TYPE_CHECKING:
    from agent.api.structs import HTTPGetAction

_MAX_REDIRECTS = 10
_HEAD_LIMIT = 64 << 10
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: |$)")
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_UNSAFE = re.compile(r"[^\x21-\x7e]")

Headers = tuple[tuple[str, str], ...]


class BadAnswer(ValueError):
    """The peer's bytes are not an HTTP response."""


@dataclass(frozen=True)
class Answer:
    """A response's status, the target of its redirect (if it is one), and the beginning of its body."""

    status: int
    location: str | None
    body: bytes = b""


def render_request(url: str, headers: Headers) -> bytes:
    """The bytes of one GET. A header of the spec replaces ours of that name; an empty Accept removes it."""
    parts = urlsplit(url)
    path = parts.path or "/"
    target = f"{path}?{parts.query}" if parts.query else path
    given = {name.lower() for name, _ in headers}
    host = next((value for name, value in headers if name.lower() == "host" and value), parts.netloc)
    lines = [f"GET {_escape(target)} HTTP/1.1", f"Host: {host}"]
    if "user-agent" not in given:
        lines.append(f"User-Agent: {USER_AGENT}")
    if "accept" not in given:
        lines.append("Accept: */*")
    for name, value in headers:
        lowered = name.lower()
        if lowered in ("host", "connection") or (lowered in ("accept", "user-agent") and not value):
            continue
        lines.append(f"{name}: {value}")
    lines.append("Connection: close")
    return "\r\n".join((*lines, "", "")).encode("utf-8")


def _escape(target: str) -> str:
    return _UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), target)


def parse_head(head: bytes) -> Answer:
    """Status and Location of a response head (everything before the empty line).

    Raises:
        BadAnswer: not an HTTP/1.x response.
    """
    first, *fields = head.split(b"\r\n") if b"\r\n" in head else head.split(b"\n")
    match = _STATUS_LINE.match(first)
    if match is None:
        raise BadAnswer(f"malformed HTTP response {first[:80]!r}")
    location = None
    for field in fields:
        name, _, value = field.partition(b":")
        if name.strip().lower() == b"location":
            location = value.strip().decode("latin-1")
    return Answer(int(match[1]), location)


async def fetch(url: str, headers: Headers) -> Answer:
    """GET a URL once, without following redirects. The caller limits the time.

    Raises:
        OSError: no connection, or it broke.
        BadAnswer: not HTTP.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host = parts.hostname or ""
    port = parts.port or (443 if secure else 80)
    context = _unchecked_tls() if secure else None
    reader, writer = await asyncio.open_connection(host, port, ssl=context, limit=_HEAD_LIMIT)
    try:
        writer.write(render_request(url, headers))
        while True:
            answer = parse_head(await _read_head(reader))
            if answer.status >= 200 or answer.status == 101:
                break
        body = await _body(reader) if 300 <= answer.status < 400 else b""
        return Answer(answer.status, answer.location, body)
    except asyncio.IncompleteReadError as exc:
        if exc.partial:
            raise BadAnswer(f"malformed HTTP response {exc.partial[:80]!r}") from exc
        raise ConnectionResetError("EOF") from exc
    except asyncio.LimitOverrunError as exc:
        raise BadAnswer(f"response head larger than {_HEAD_LIMIT} bytes") from exc
    finally:
        writer.transport.abort() if secure else writer.close()


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    """Everything before the empty line, its lines ended by CRLF.

    A bare LF ends a line too, even between lines that end in CRLF, as in kubelet's parser: CGI scripts and
    hand-made servers do that.
    """
    lines: list[bytes] = []
    size = 0
    while (line := await reader.readuntil(b"\n")) not in (b"\r\n", b"\n"):
        size += len(line)
        if size > _HEAD_LIMIT:
            raise BadAnswer(f"response head larger than {_HEAD_LIMIT} bytes")
        lines.append(line.rstrip(b"\r\n"))
    return b"\r\n".join(lines)


async def _body(reader: asyncio.StreamReader) -> bytes:
    return await reader.read(OUTPUT_LIMIT)


@functools.cache
def _unchecked_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def probe_url(action: HTTPGetAction, target: Target) -> str:
    """The URL a probe asks for.

    Raises:
        Unmeasurable: the port has no such name.
    """
    port = resolve_port(action.port, target.container)
    path = action.path if action.path.startswith("/") else f"/{action.path}"
    scheme = action.scheme.lower() or "http"
    return f"{scheme}://{host_port(action.host or target.pod_ip, port)}{path}"


async def measure_http(action: HTTPGetAction, target: Target, *, timeout: float) -> Measurement:
    """Ask once, following at most ten redirects on the same host name; one to elsewhere is a warned success.

    Raises:
        Unmeasurable: the port has no such name.
    """
    url = probe_url(action, target)
    headers = tuple((header.name, header.value) for header in action.http_headers)
    try:
        async with asyncio.timeout(timeout):
            answer = await _fetch_following(url, headers)
    except TimeoutError:
        return failure(
            f'Get "{url}": context deadline exceeded (Client.Timeout exceeded while awaiting headers)'
        )
    except (OSError, BadAnswer) as exc:
        return failure(f'Get "{url}": {_reason(exc, url)}')
    if not 200 <= answer.status < 400:
        return failure(f"HTTP probe failed with statuscode: {answer.status}")
    if answer.status >= 300:
        text = f"Probe terminated redirects, Response body: {answer.body.decode(errors='replace')}"
        return Measurement(Outcome.SUCCESS, text, warning=True)
    return SUCCESS


async def _fetch_following(url: str, headers: Headers) -> Answer:
    first_host = urlsplit(url).hostname
    for _ in range(_MAX_REDIRECTS):
        answer = await fetch(url, headers)
        if answer.status not in _REDIRECTS or not answer.location:
            return answer
        following = urljoin(url, answer.location)
        if urlsplit(following).hostname != first_host or urlsplit(following).scheme not in ("http", "https"):
            return answer
        url = following
    raise BadAnswer(f"stopped after {_MAX_REDIRECTS} redirects")


def _reason(exc: Exception, url: str) -> str:
    parts = urlsplit(url)
    if isinstance(exc, ssl.SSLError):
        return f"tls: {exc.reason or exc}".lower().replace("_", " ")
    if isinstance(exc, ConnectionResetError) and exc.args == ("EOF",):
        return "EOF"
    if isinstance(exc, OSError):
        return dial_error(exc, parts.hostname or "", parts.port or 0)
    return str(exc)
