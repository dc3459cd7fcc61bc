"""Long runs by name (`tests/run soak_cri`), never part of the default set: they judge, and print figures."""

from collections.abc import Callable

import crinode
import isolation
import pytest

throw_away_namespaces = isolation.throw_away_namespaces
daemon, node, bare_node = crinode.daemon, crinode.node, crinode.bare_node


@pytest.fixture(scope="session", autouse=True)
def isolated(throw_away_namespaces: None) -> None:
    """Before the first test, whether it asks or not."""


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print at once, whatever pytest does with the output of tests."""

    def tell(words: str) -> None:
        with capsys.disabled():
            print(f"\n  {words}", end="", flush=True)

    return tell
