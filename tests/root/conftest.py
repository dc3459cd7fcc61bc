"""Every test of this ring runs outside the machine's network and mount namespaces."""

import crinode
import isolation
import pytest

throw_away_namespaces, new_netns = isolation.throw_away_namespaces, isolation.new_netns
daemon, node, bare_node = crinode.daemon, crinode.node, crinode.bare_node
handler = crinode.handler


@pytest.fixture(scope="session", autouse=True)
def isolated(throw_away_namespaces: None) -> None:
    """Before the first test, whether it asks or not."""
