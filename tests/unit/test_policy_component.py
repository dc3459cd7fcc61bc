"""The policy component on a scripted API, a kernel that behaves and virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from apikit import ScriptedTransport, listing, refusal
from policy_model import FakeNft, passes

from agent.api.client import ApiClient
from agent.api.structs import Pod
from agent.policy.component import PolicyAgent
from agent.policy.verdict import Flow
from agent.policy.yielding import other_agent
from agent.server import exposition
from host.clocks import FakeClock, settle

DENY = {
    "metadata": {"name": "deny", "namespace": "default", "resourceVersion": "1", "uid": "d"},
    "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress", "Egress"]},
}
OUT = Flow("10.1.0.5", "203.0.113.7")


def pod(name: str = "web", *, host_network: bool = False) -> Pod:
    body = {
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "hostNetwork": host_network, "containers": [{"name": "c"}]},
    }
    return msgspec.convert(body, Pod)


class World:
    """An agent with what surrounds it; lists can be changed, watches stay silent."""

    def __init__(self, *, mode: str = "auto", policies: tuple = (DENY,)) -> None:
        self.lists = {"networkpolicies": policies, "pods": (), "namespaces": ()}
        self.refused: Exception | None = None
        self.other = ""
        self.said: list[tuple[str, str]] = []
        self.kernel, self.clock = FakeNft(), FakeClock()
        self.transport = ScriptedTransport(self.answer)
        self.agent = PolicyAgent(
            ApiClient(self.transport, clock=self.clock),
            node_name="n1",
            mode=mode,  # type: ignore[arg-type]
            other_agent=lambda: self.other,
            kernel=self.kernel,
            clock=self.clock,
            report=lambda reason, message: self.said.append((reason, message)),
        )

    def answer(self, method: str, path: str, query: dict, body: object) -> object:
        if self.refused is not None:
            return self.refused
        return (
            listing() if "fieldSelector" in query and "name=" in query["fieldSelector"] else self.listed(path)
        )

    def listed(self, path: str) -> object:
        return listing(*self.lists[path.rsplit("/", 1)[-1]])

    @property
    def watched(self) -> set[str]:
        asked = [(path, query.get("fieldSelector", "")) for _, path, query, *_ in self.transport.requests]
        return {path.rsplit("/", 1)[-1] for path, fields in asked if "metadata.name" not in fields}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.agent.run())
        await self.rest()
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def rest(self) -> None:
        """Let threads and tasks come to rest."""
        for _ in range(10):
            await settle()
            await asyncio.get_running_loop().run_in_executor(None, lambda: None)


async def test_a_pod_waits_until_its_policies_are_in_the_kernel() -> None:
    world = World()
    world.kernel.failures = 1
    async with world.running():
        start = asyncio.create_task(world.agent.ready(pod(), ["10.1.0.5"], early=False))
        await world.rest()
        assert not start.done()
        assert "told to fail" in world.agent.problem
        await world.clock.advance(2)
        await world.rest()
        assert start.done()
        assert not passes(world.kernel, OUT)
        assert world.agent.problem == ""
        shown = exposition.values(world.agent.families())
        assert shown["nodelet_policy_sync_failures_total"] == shown["nodelet_policy_policies"] == 1
        assert shown["nodelet_policy_dropped_packets_total"] == 7
        assert shown["nodelet_policy_enforced"] == shown["nodelet_policy_isolated_pods"] == 1
        assert shown['nodelet_policy_sync_duration_seconds_count{kind="whole"}'] == 1


async def test_a_pod_waits_for_the_first_lists() -> None:
    world = World()
    world.refused = refusal(503)
    async with world.running():
        start = asyncio.create_task(world.agent.ready(pod(), ["10.1.0.5"], early=False))
        await world.clock.advance(1)
        await world.rest()
        assert not start.done()
        await asyncio.wait_for(world.agent.ready(pod("static"), ["10.1.0.6"], early=True), 5)
        await asyncio.wait_for(world.agent.ready(pod("node", host_network=True), [], early=False), 5)
        world.refused = None
        await world.clock.advance(20)
        await world.rest()
        assert start.done()
        assert not passes(world.kernel, OUT)
        assert not passes(world.kernel, Flow("10.1.0.6", "203.0.113.7"))  # the static pod's came later


async def test_without_policies_nothing_else_is_watched_and_nothing_written() -> None:
    world = World(policies=())
    async with world.running():
        await asyncio.wait_for(world.agent.ready(pod(), ["10.1.0.5"], early=False), 5)
        assert world.kernel.table is None
        assert world.watched == {"networkpolicies"}


async def test_the_last_policy_takes_watches_and_table_with_it() -> None:
    world = World()
    world.transport.streams = [[{"type": "DELETED", "object": DENY}]]
    async with world.running():
        await world.rest()
        await world.clock.advance(1)
        await world.rest()
        assert world.watched == {"networkpolicies", "pods", "namespaces"}
        assert world.kernel.table is None
        assert passes(world.kernel, OUT)


async def test_what_a_stranger_changed_is_mended_at_the_next_look() -> None:
    world = World()
    async with world.running():
        await asyncio.wait_for(world.agent.ready(pod(), ["10.1.0.5"], early=False), 5)
        before = world.kernel.content
        world.kernel.table, world.kernel.meddled = None, True
        await world.clock.advance(16)
        await world.rest()
        await world.clock.advance(1)
        await world.rest()
        assert world.kernel.content == before
        assert exposition.values(world.agent.families())["nodelet_policy_drifts_total"] == 1
        writes = len(world.kernel.texts)
        world.kernel.meddled = True  # somebody else's table changed
        await world.clock.advance(40)
        await world.rest()
        assert len(world.kernel.texts) == writes


async def test_another_agent_is_left_alone_until_it_is_gone() -> None:
    world = World()
    async with world.running():
        await asyncio.wait_for(world.agent.ready(pod(), ["10.1.0.5"], early=False), 5)
        assert not passes(world.kernel, OUT)
        world.other = "cilium (device cilium_host)"
        await world.clock.advance(16)
        await world.rest()
        assert world.kernel.table is None
        assert "cilium" in world.agent.resting
        await asyncio.wait_for(world.agent.ready(pod("later"), ["10.1.0.7"], early=False), 5)
        world.other = ""
        await world.clock.advance(16)
        await world.rest()
        assert not passes(world.kernel, OUT)
        assert not passes(world.kernel, Flow("10.1.0.7", "203.0.113.7"))


@pytest.mark.parametrize("mode", ["auto", "on"])
async def test_without_permission_auto_rests_and_on_holds_pods_back(mode: str) -> None:
    world = World(mode=mode)
    world.refused = refusal(403, "Forbidden", "networkpolicies is forbidden")
    async with world.running():
        start = asyncio.create_task(world.agent.ready(pod(), ["10.1.0.5"], early=False))
        await world.rest()
        assert start.done() is (mode == "auto")
        assert [reason for reason, _ in world.said] == ["NetworkPolicyNotEnforced"] * (mode == "auto")
        world.refused = None
        await world.clock.advance(40)
        await world.rest()
        assert start.done()
        assert not passes(world.kernel, OUT)


async def test_off_removes_what_an_earlier_run_left() -> None:
    world = World(mode="off")
    world.kernel.write("add table inet nodelet-policy\n")
    async with world.running():
        assert world.kernel.table is None
        assert world.transport.requests == []


def test_signs_of_other_agents() -> None:
    owned = msgspec.convert(
        {"metadata": {"ownerReferences": [{"kind": "DaemonSet", "name": "calico-node"}]}}, Pod
    )
    assert other_agent([owned], [], []) == "calico (DaemonSet calico-node)"
    assert other_agent([], ["lo", "cali0123456789a"], []) == "calico (device cali0123456789a)"
    assert (
        other_agent([], [], ["kindnet-network-policies"])
        == "kindnet (nftables table kindnet-network-policies)"
    )
    assert other_agent([pod()], ["lo", "cbr0", "veth0123456789a"], ["nat", "filter", "nodelet-policy"]) == ""
