"""Waiting for the Node authorizer to hear of a pod."""

import pytest

from agent.api.authorizer import once_authorized
from agent.api.errors import Forbidden, NotFound

LAG = Forbidden("configmaps \"c\" is forbidden: no relationship found between node 'n1' and this object")


class Api:
    """Answers from a list: raises what is an error."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.slept: list[float] = []

    async def ask(self) -> object:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


async def test_a_refusal_for_want_of_news_is_waited_out():
    api = Api(LAG, LAG, "found")
    assert await once_authorized(api.ask, sleep=api.sleep) == "found"
    assert len(api.slept) == 2 and sum(api.slept) < 0.1


async def test_a_refusal_that_lasts_is_told():
    api = Api(*[LAG] * 100)
    with pytest.raises(Forbidden, match="no relationship found"):
        await once_authorized(api.ask, sleep=api.sleep)
    assert 1 < sum(api.slept) < 3


@pytest.mark.parametrize("error", [NotFound("not here"), Forbidden("RBAC says no")])
async def test_anything_else_is_told_at_once(error: Exception):
    api = Api(error, "never asked")
    with pytest.raises(type(error)):
        await once_authorized(api.ask, sleep=api.sleep)
    assert api.slept == [] and api.answers == ["never asked"]
