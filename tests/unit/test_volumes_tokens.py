"""When a service account's token is asked for again, in virtual time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from podkit import make_pod

from agent.api.errors import ApiError
from agent.api.structs import (
    ServiceAccountTokenProjection,
    TokenRequest,
    TokenRequestSpec,
    TokenRequestStatus,
)
from agent.api.times import format_time
from agent.volumes.base import Unready
from agent.volumes.tokens import Tokens
from host.clocks import FakeClock

POD = make_pod(spec={"serviceAccountName": "robot"})
HOUR, DAY = 3600, 24 * 3600


@dataclass
class Server:
    """Answers tokens t1, t2 and so on, as long as it is up."""

    clock: FakeClock
    asked: list[Any] = field(default_factory=list)
    up: bool = True

    async def create_token(self, namespace: str, service_account: str, request: TokenRequest) -> TokenRequest:
        if not self.up:
            raise ApiError("connection refused")
        self.asked.append((namespace, service_account, request.spec))
        life = request.spec.expiration_seconds or 0
        status = TokenRequestStatus(
            token=f"t{len(self.asked)}", expiration_timestamp=format_time(self.clock.now() + life)
        )
        return TokenRequest(spec=TokenRequestSpec(expiration_seconds=life), status=status)


def tokens(server: Server, *, jitter: float = 0.0) -> Tokens:
    return Tokens(server, clock=server.clock, random=lambda: jitter)  # type: ignore[arg-type]


def wanted(seconds: int) -> ServiceAccountTokenProjection:
    return ServiceAccountTokenProjection(path="token", audience="vault", expiration_seconds=seconds)


@pytest.mark.parametrize(("seconds", "age"), [(HOUR, 0.8 * HOUR), (100 * HOUR, DAY)])
async def test_at_four_fifths_of_its_life_or_after_a_day(seconds: int, age: float) -> None:
    server = Server(FakeClock())
    held, asks = tokens(server), wanted(seconds)
    assert await held.get(POD, asks) == "t1"
    await server.clock.advance(age - 2)
    assert (held.due(), await held.get(POD, asks)) == (set(), "t1")
    await server.clock.advance(3)
    assert held.due() == {POD.metadata.uid}
    assert await held.get(POD, asks) == "t2"
    assert held.due() == set()
    namespace, account, spec = server.asked[0]
    assert (namespace, account, spec.audiences) == ("default", "robot", ("vault",))
    assert (spec.bound_object_ref.name, spec.bound_object_ref.uid) == ("web", POD.metadata.uid)


async def test_pods_that_started_together_do_not_ask_together() -> None:
    server = Server(FakeClock())
    early, late = tokens(server, jitter=0.99), tokens(server, jitter=0.0)
    for held in (early, late):
        await held.get(POD, wanted(HOUR))
    await server.clock.advance(0.8 * HOUR - 5)
    assert (early.due(), late.due()) == ({POD.metadata.uid}, set())


async def test_an_old_token_serves_while_it_is_valid_and_no_longer() -> None:
    server = Server(FakeClock())
    held, asks = tokens(server), wanted(HOUR)
    await held.get(POD, asks)
    server.up = False
    await server.clock.advance(0.9 * HOUR)
    assert await held.get(POD, asks) == "t1"
    await server.clock.advance(0.2 * HOUR)
    with pytest.raises(Unready, match="failed to fetch token: connection refused"):
        await held.get(POD, asks)
    server.up = True
    assert await held.get(POD, asks) == "t2"


async def test_tokens_go_with_their_pod() -> None:
    server = Server(FakeClock())
    held = tokens(server)
    await held.get(POD, wanted(HOUR))
    held.forget(POD.metadata.uid)
    assert await held.get(POD, wanted(HOUR)) == "t2"
