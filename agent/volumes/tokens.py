"""Service account tokens for pods: bound to the pod, renewed before they end, kept only in memory.

A token is due for renewal when 80 % of its life is over, or when it is 24 hours old, less a few seconds of
jitter so that pods started together do not ask together (k8s.io/kubernetes/pkg/kubelet/token). While the API
cannot be asked, a token that is still valid stays in use.
"""

from __future__ import annotations

import logging
import random as random_module
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.api.errors import ApiError
from agent.api.structs import BoundObjectReference, TokenRequest, TokenRequestSpec
from agent.api.times import parse_time
from agent.volumes.base import Unready

if TYPE_CHECKING:
    from agent.api.structs import Pod, ServiceAccountTokenProjection
    from agent.volumes.base import Sources
    from host.clocks import Clock

_log = logging.getLogger(__name__)
_MAX_AGE = 24 * 3600.0
_MAX_JITTER = 10.0
_RENEW_AT = 0.8


@dataclass(frozen=True)
class Token:
    """A token's text with its end and renewal time, both in unix seconds."""

    text: str
    expires_at: float
    renew_at: float

    def __repr__(self) -> str:
        return f"Token(expires_at={self.expires_at})"


_Key = tuple[str, str, str, int]


class Tokens:
    """The tokens of all pods on this node.

    Args:
        sources: where TokenRequests go.
        clock: wall time, because expiry is a wall-clock time.
        random: uniform numbers in [0, 1), for the jitter.
    """

    def __init__(
        self, sources: Sources, *, clock: Clock, random: Callable[[], float] = random_module.random
    ) -> None:
        self._sources = sources
        self._clock = clock
        self._random = random
        self._tokens: dict[_Key, Token] = {}

    async def get(self, pod: Pod, projection: ServiceAccountTokenProjection) -> str:
        """The token of a projection, asked for when there is none or it is due.

        Raises:
            Unready: the API refused and no valid token is at hand.
        """
        account = pod.spec.service_account_name or "default"
        key = (pod.metadata.uid, account, projection.audience, projection.expiration_seconds)
        old = self._tokens.get(key)
        now = self._clock.now()
        if old is not None and now < old.renew_at:
            return old.text
        try:
            new = await self._ask(pod, account, projection)
        except ApiError as exc:
            if old is None or now >= old.expires_at:
                raise Unready(f"failed to fetch token: {exc}") from exc
            _log.warning(
                "cannot renew token of service account %s/%s: %s", pod.metadata.namespace, account, exc
            )
            return old.text
        self._tokens[key] = new
        return new.text

    async def _ask(self, pod: Pod, account: str, projection: ServiceAccountTokenProjection) -> Token:
        seconds = projection.expiration_seconds
        request = TokenRequest(
            api_version="authentication.k8s.io/v1",
            kind="TokenRequest",
            spec=TokenRequestSpec(
                audiences=(projection.audience,) if projection.audience else (),
                expiration_seconds=seconds,
                bound_object_ref=BoundObjectReference(
                    api_version="v1", kind="Pod", name=pod.metadata.name, uid=pod.metadata.uid
                ),
            ),
        )
        answer = await self._sources.create_token(pod.metadata.namespace, account, request)
        now = self._clock.now()
        life = float(answer.spec.expiration_seconds or seconds)
        expires_at = parse_time(answer.status.expiration_timestamp) or now + life
        issued_at = expires_at - life
        jitter = self._random() * _MAX_JITTER
        renew_at = issued_at + min(_RENEW_AT * life, _MAX_AGE) - jitter
        return Token(answer.status.token, expires_at, renew_at)

    def due(self) -> set[str]:
        """UIDs of pods with a token that is due for renewal."""
        now = self._clock.now()
        return {key[0] for key, token in self._tokens.items() if now >= token.renew_at}

    def forget(self, pod_uid: str) -> None:
        """Drop a pod's tokens."""
        for key in [key for key in self._tokens if key[0] == pod_uid]:
            del self._tokens[key]
