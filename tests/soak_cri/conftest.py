"""Long runs by name (`tests/run soak_cri`), never part of the default set: they judge, and print figures."""

import crinode
import isolation
import pytest

throw_away_namespaces = isolation.throw_away_namespaces
daemon, node, bare_node = crinode.daemon, crinode.node, crinode.bare_node


@pytest.fixture(scope="session", autouse=True)
def isolated(throw_away_namespaces: None) -> None:
    """Before the first test, whether it asks or not."""
