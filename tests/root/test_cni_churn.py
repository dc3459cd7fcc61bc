"""Pods made and removed while the daemon is killed: leases, devices and rules are those of running pods."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from cni_churn import Churn, executed_plugin, host_port_rules
from crinode import CriNode


@pytest.mark.parametrize("plugin", ["in the daemon", "executed"])
async def test_forty_pods_and_two_kills(bare_node: CriNode, plugin: str) -> None:
    node = bare_node
    before = node.picture().without_descriptors()
    with executed_plugin(node) if plugin == "executed" else nullcontext():
        churn = Churn(node, count=40, kills=2)
        await churn.run()
        assert churn.there() == await churn.expected()
        assert churn.interrupted and len(churn.pods) == 4
        for sandbox in list(churn.pods):
            await churn.remove(sandbox)
        assert await node.left_over(before) == []
        assert host_port_rules() == []
