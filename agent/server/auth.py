"""Who is asking (authentication), and may they (authorization).

A client certificate signed by the client CA names a user (CN) and groups (O); a bearer token is reviewed by
the API server. Every request of a known user is then put to the API server as a SubjectAccessReview on
`nodes/<subresource>`. Answers are cached for a bounded time in bounded caches; when the API server cannot be
asked the answer is no.

Source: https://kubernetes.io/docs/reference/access-authn-authz/kubelet-authn-authz/.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from agent.api import errors
from agent.api.client import ApiClient
from agent.api.resources import SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS
from agent.api.structs import (
    ResourceAttributes,
    SubjectAccessReview,
    SubjectAccessReviewSpec,
    TokenReview,
    TokenReviewSpec,
)
from host.clocks import Clock

log = logging.getLogger(__name__)
CACHE_SIZE = 4096
V = TypeVar("V")


@dataclasses.dataclass(frozen=True)
class User:
    """Somebody the API server would know."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


class Unknown(Exception):
    """The request carries no valid credentials (401)."""


class Refused(Exception):
    """The user may not do this (403); the text is for them."""


def certificate_user(peer: Mapping[str, Any] | None) -> User | None:
    """The user a verified client certificate names, from `SSLObject.getpeercert()`; None without one.

    The TLS layer has verified the chain and that the certificate may be used by clients.
    """
    if not peer:
        return None
    pairs = [pair for entry in peer.get("subject", ()) for pair in entry]
    names = [value for key, value in pairs if key == "commonName"]
    groups = tuple(value for key, value in pairs if key == "organizationName")
    return User(names[0], (*groups, "system:authenticated")) if names and names[0] else None


class _Cache(Generic[V]):
    """Values with an end of life, the least recently made go first when it is full."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._items: collections.OrderedDict[object, tuple[float, V]] = collections.OrderedDict()

    def get(self, key: object) -> V | None:
        found = self._items.get(key)
        return found[1] if found and found[0] > self._clock.monotonic() else None

    def put(self, key: object, value: V, seconds: float) -> None:
        self._items.pop(key, None)
        self._items[key] = (self._clock.monotonic() + seconds, value)
        while len(self._items) > CACHE_SIZE:
            self._items.popitem(last=False)


@dataclasses.dataclass(frozen=True)
class AuthSettings:
    """How requests are checked; lifetimes in seconds."""

    anonymous: bool = False
    tokens: bool = True
    token_ttl: float = 120.0
    always_allow: bool = False
    allowed_ttl: float = 300.0
    refused_ttl: float = 30.0


class Gate:
    """Both questions. Without a client (standalone) nobody but the healthz port gets an answer."""

    def __init__(
        self, client: ApiClient | None, *, node_name: str, settings: AuthSettings, clock: Clock
    ) -> None:
        self._client = client
        self._node = node_name
        self._settings = settings
        self._tokens: _Cache[User] = _Cache(clock)
        self._decisions: _Cache[bool] = _Cache(clock)
        if settings.always_allow:
            log.warning("authorization mode is AlwaysAllow: every authenticated user may run commands")

    async def authenticate(self, peer: Mapping[str, Any] | None, authorization: str) -> User:
        """The user behind a request. Raises `Unknown`."""
        user = certificate_user(peer)
        if user is not None:
            return user
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer" and token.strip() and self._settings.tokens:
            return await self._review(token.strip())
        if self._settings.anonymous and not authorization:
            return ANONYMOUS
        raise Unknown

    async def _review(self, token: str) -> User:
        key = hashlib.sha256(token.encode()).digest()
        known = self._tokens.get(key)
        if known is not None:
            return known
        if self._client is None:
            raise Unknown
        try:
            review = TokenReview(spec=TokenReviewSpec(token=token))
            answer = (await self._client.create(TOKEN_REVIEWS, review)).status
        except errors.ApiError as exc:
            log.warning("token not reviewed, refusing error=%s", exc)
            raise Unknown from exc
        if not answer.authenticated:
            raise Unknown
        found = answer.user
        user = User(found.username, found.groups, found.uid, tuple(sorted(found.extra.items())))
        self._tokens.put(key, user, self._settings.token_ttl)
        return user

    async def authorize(self, user: User, *, verb: str, subresources: Sequence[str], path: str) -> None:
        """Return when one of the subresources allows it. Raises `Refused`."""
        if self._settings.always_allow:
            return
        for subresource in subresources:
            if await self._allowed(user, verb, subresource):
                return
        names = " ".join(subresources)
        log.info("forbidden user=%r verb=%s subresources=%r path=%r", user.name, verb, names, path)
        raise Refused(
            f"Forbidden (user={user.name}, verb={verb}, resource=nodes, subresource(s)=[{names}])\n"
        )

    async def _allowed(self, user: User, verb: str, subresource: str) -> bool:
        key = (user, verb, subresource)
        known = self._decisions.get(key)
        if known is not None:
            return known
        if self._client is None or not verb:
            return False
        attributes = ResourceAttributes(
            verb=verb, version="v1", resource="nodes", subresource=subresource, name=self._node
        )
        spec = SubjectAccessReviewSpec(
            resource_attributes=attributes,
            user=user.name,
            groups=user.groups,
            uid=user.uid,
            extra=_extra(user.extra),
        )
        try:
            review = await self._client.create(SUBJECT_ACCESS_REVIEWS, SubjectAccessReview(spec=spec))
        except errors.ApiError as exc:
            log.warning("access not reviewed, refusing user=%r error=%s", user.name, exc)
            return False
        allowed = review.status.allowed and not review.status.denied
        ttl = self._settings.allowed_ttl if allowed else self._settings.refused_ttl
        self._decisions.put(key, allowed, ttl)
        return allowed


def _extra(pairs: Iterable[tuple[str, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    return {key.lower(): values for key, values in pairs}
