"""Five hundred pods made and removed under five kills of the daemon; it or plugins connect them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import pytest
from cni_churn import Churn, executed_plugin, host_port_rules
from crinode import CriNode

PODS, KILLS = 500, 5


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("plugin", ["in the daemon", "executed"])
async def test_e06_leases_are_those_of_running_pods(
    bare_node: CriNode, plugin: str, say: Callable[[str], None]
) -> None:
    """50 of them stay until the end: what is theirs is there, and what was others' is not."""
    node = bare_node
    before = node.picture().without_descriptors()
    with executed_plugin(node) if plugin == "executed" else nullcontext():
        churn = Churn(node, count=PODS, kills=KILLS, say=say)
        started = time.monotonic()
        await churn.run()
        say(f"{PODS} pods, plugin {plugin}: {time.monotonic() - started:.0f} s")
        assert churn.there() == await churn.expected()
        assert len(churn.pods) == 50
        for sandbox in list(churn.pods):
            await churn.remove(sandbox)
        assert await node.left_over(before) == []
        assert host_port_rules() == []
