"""The first lines of a stream connection: one HTTP/1.1 request that asks for an upgrade. Bytes in, record
out.

Not for: anything with a body, keep-alive or TLS. The only clients are the kubelet's and the agent's proxies
on this machine, and what follows the answer is WebSocket or SPDY.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

HEAD_LIMIT = 16 << 10
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_REASONS = {
    101: "Switching Protocols",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
}


class BadRequest(ValueError):
    """The request head is not HTTP/1.1, or asks for something streams are not for."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request head."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Lower-case names; repeated ones joined by commas."""

    def words(self, name: str) -> tuple[str, ...]:
        """The comma-separated words of a header; empty when it is missing."""
        return tuple(word.strip() for word in self.headers.get(name, "").split(",") if word.strip())

    def upgrades_to(self, protocol: str) -> bool:
        """Whether the request asks to go on in another protocol (RFC 9110 section 7.8)."""
        connection = [word.lower() for word in self.words("connection")]
        return "upgrade" in connection and self.headers.get("upgrade", "").lower() == protocol.lower()


def parse_head(head: bytes) -> Request:
    """A request from the bytes up to and including the empty line.

    Raises:
        BadRequest: not a request head.
    """
    if len(head) > HEAD_LIMIT or not head.endswith(b"\r\n\r\n"):
        raise BadRequest("request head is too long or has no end")
    try:
        lines = head[:-4].decode("ascii").split("\r\n")
    except UnicodeDecodeError as exc:
        raise BadRequest("request head is not ASCII") from exc
    parts = lines[0].split(" ")
    if len(parts) != 3 or parts[2] != "HTTP/1.1" or not parts[1].startswith("/"):
        raise BadRequest("first line is not an HTTP/1.1 request")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if (
            not colon
            or not name
            or not set(name) <= _TOKEN
            or "\r" in value
            or "\n" in value
            or "\0" in value
        ):
            raise BadRequest("a header line is malformed")
        key, value = name.lower(), value.strip(" \t")
        headers[key] = f"{headers[key]},{value}" if key in headers else value
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise BadRequest("a stream request has no body")
    return Request(method=parts[0], path=parts[1].partition("?")[0], headers=headers)


def render_answer(status: int, headers: Sequence[tuple[str, str]] = (), body: str = "") -> bytes:
    """An answer's bytes; with status 101 the connection goes on in the other protocol, else it is closed."""
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{name}: {value}" for name, value in headers)]
    if status != 101:
        lines += ["Connection: close", "Content-Type: text/plain", f"Content-Length: {len(body.encode())}"]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()
