"""Patience with the Node authorizer, which may hear of a pod later than its node does.

A node may read what its pods refer to. The API server's authorizer learns who refers to what by a watch of
its own, so for some milliseconds after a pod was bound it refuses the node that already starts it.

Source: https://kubernetes.io/docs/reference/access-authn-authz/node/; plugin/pkg/auth/authorizer/node
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from agent.api.errors import Forbidden

T = TypeVar("T")
_UNRELATED = "no relationship found between node"
_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds between tries; who is refused after all of them is not allowed."""


async def once_authorized(
    ask: Callable[[], Awaitable[T]], *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> T:
    """The API's answer, once its authorizer has heard of the pod; `ask` may be called several times.

    Raises:
        ApiError: the last refusal, or anything else at once.
    """
    for pause in _PAUSES:
        try:
            return await ask()
        except Forbidden as exc:
            if _UNRELATED not in exc.message:
                raise
        await sleep(pause)
    return await ask()
