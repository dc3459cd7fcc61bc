"""Errors of talking to the API server; the type carries what the caller should do.

    ApiError
    ├── Temporary            try again, not before `delay` seconds: 429, 5xx, time-outs
    │   └── Unreachable      no HTTP answer at all: refused, reset, DNS, TLS
    └── Permanent            the same request will fail again
        ├── BadRequest       400, 405, 413, 415, 422: we sent nonsense
        ├── Unauthorized     401: credentials are missing or no longer valid
        ├── Forbidden        403: RBAC or an admission plug-in said no
        ├── NotFound         404
        ├── Conflict         409: somebody changed the object first; read again
        │   └── AlreadyExists
        └── Gone             410: the resourceVersion is too old; list again

Library exceptions (aiohttp, ssl, msgspec) are turned into these in `agent.api.transport` and nowhere else.

Source: https://github.com/kubernetes/community, api-conventions.md, "Response Status Kind".
"""

from __future__ import annotations

import logging

from agent.api.meta import Status


class ApiError(Exception):
    """`status` is the HTTP code (0: none), `reason` the API's one-word reason, `message` its text."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason


class Temporary(ApiError):
    """`delay` is the least number of seconds to wait, as the server asked for (Retry-After), or 0."""

    def __init__(self, message: str, *, status: int = 0, reason: str = "", delay: float = 0.0) -> None:
        super().__init__(message, status=status, reason=reason)
        self.delay = delay


class Unreachable(Temporary):
    """No HTTP answer came back."""


class Permanent(ApiError):
    """Do not repeat the request unchanged."""


class BadRequest(Permanent):
    """The server does not accept what we sent."""


class Unauthorized(Permanent):
    """Our credentials are not valid (any more)."""


class Forbidden(Permanent):
    """We are known, and not allowed to do this."""


class NotFound(Permanent):
    """The object (or the whole resource) does not exist."""


class Conflict(Permanent):
    """The object changed since we read it, or its uid differs."""


class AlreadyExists(Conflict):
    """An object of this name exists."""


class Gone(Permanent):
    """The resourceVersion or continue token has expired."""


def log_level(exc: ApiError) -> int:
    """How loudly a caller that tries again says so: an API server that is away is the transport's to tell,
    once, and not every caller's at every try."""
    silent = isinstance(exc, Unreachable) and exc.reason != "BadCertificate"
    return logging.DEBUG if silent else logging.WARNING


_BY_STATUS: dict[int, type[Permanent]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
}
_TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})


def from_status(code: int, status: Status, *, what: str, retry_after: float = 0.0) -> ApiError:
    """The typed error for an HTTP code of 400 and above and the `Status` object that came with it.

    `what` names the request ("get pods default/web"); `retry_after` is in seconds.
    """
    text = f"{what}: {status.message or status.reason or f'HTTP {code}'}"
    if code in _TEMPORARY or code >= 500:
        delay = retry_after or (float(status.details.retry_after_seconds) if status.details else 0.0)
        return Temporary(text, status=code, reason=status.reason, delay=delay)
    kind = _BY_STATUS.get(code, BadRequest)
    if code == 409 and status.reason == "AlreadyExists":
        kind = AlreadyExists
    return kind(text, status=code, reason=status.reason)
