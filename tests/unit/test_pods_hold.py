"""A deleted pod that services still lead to: SIGTERM waits for them, and never for longer than it may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from podkit import Node, Program, deleted, make_pod, running

HOLD = 10.0


def held_node(root: Path, **settings: Any) -> Node:
    node = Node(root, hold_termination=HOLD, **settings)
    node.cri.programs["app"] = Program(on_term=0)
    return node


def kills(node: Node) -> int:
    return [call for call, _ in node.cri.calls].count("stop_container")


async def test_term_waits_until_the_rules_have_let_go(tmp_path: Path) -> None:
    async with running(held_node(tmp_path)) as node:
        await node.put(make_pod())
        (address,) = (each.ip for each in node.pod().status.pod_ips)
        routed = {address}
        node.manager.routed = lambda ips: not routed.isdisjoint(ips)
        await node.put(deleted(make_pod()))
        await node.advance(HOLD / 2)
        assert kills(node) == 0 and node.state().state.running is not None
        routed.clear()
        node.manager.services_changed()
        await node.settle()
        assert kills(node) == 1


async def test_it_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    async with running(held_node(tmp_path)) as node:
        node.manager.routed = lambda ips: True
        await node.put(make_pod())
        await node.put(deleted(make_pod()))
        await node.advance(HOLD - 0.5)
        assert kills(node) == 0
        await node.advance(1)
        assert kills(node) == 1


async def test_the_grace_is_the_limit_of_it_all(tmp_path: Path) -> None:
    async with running(held_node(tmp_path)) as node:
        node.manager.routed = lambda ips: True
        await node.put(make_pod(spec={"terminationGracePeriodSeconds": 3}))
        await node.put(deleted(make_pod(spec={"terminationGracePeriodSeconds": 3}), grace=3))
        await node.advance(1.5)
        assert kills(node) == 0
        await node.advance(1)
        assert kills(node) == 1


async def test_nothing_is_held_without_the_setting_or_without_a_service(tmp_path: Path) -> None:
    for root, hold, routed in ((tmp_path / "a", 0.0, True), (tmp_path / "b", HOLD, False)):
        node = Node(root, hold_termination=hold)
        node.cri.programs["app"] = Program(on_term=0)
        node.manager.routed = lambda ips, routed=routed: routed
        async with running(node):
            await node.put(make_pod())
            await node.put(deleted(make_pod()))
            await node.advance(0.1)
            assert kills(node) == 1
