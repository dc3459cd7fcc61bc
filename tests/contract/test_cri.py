"""What the agent relies on in a CRI runtime: the same cases for the fake of the unit tests and for
nodelet-cri."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import crinode
import pytest
from fake_cri import FakeCri, Program

from agent.pods import facts
from agent.pods.facts import State
from agent.pods.runtime import Runtime, RuntimeFailure, RuntimeNotFound
from host.clocks import SystemClock
from proto.cri import runtime_pb2 as pb

_UIDS = itertools.count(1)
STUBBORN = "trap '' TERM; while :; do sleep 1; done"
POLITE = "trap 'exit 3' TERM; while :; do sleep 0.05; done"


class World:
    """One runtime, and how to ask it for pods; `parent` is where its cgroups may be."""

    def __init__(self, runtime: Any, *, logs: Path, parent: str) -> None:
        self.runtime = runtime
        self.logs = logs
        self.parent = parent

    def sandbox(self, uid: str = "") -> pb.PodSandboxConfig:
        uid = uid or f"contract-{next(_UIDS)}"
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name="pod", namespace="default", uid=uid),
            log_directory=str(self.logs / uid),
            labels={facts.LABEL_POD_UID: uid},
        )
        config.linux.cgroup_parent = f"{self.parent}/pod{uid}"
        config.linux.security_context.namespace_options.pid = pb.CONTAINER
        return config

    async def launch(self, script: str, *, program: Program | None = None) -> tuple[str, str, str]:
        """A running container: sandbox id, container id, pod uid."""
        config = self.sandbox()
        box = await self.runtime.run_sandbox(config)
        con = await self.create(box, config, script, program=program)
        await self.runtime.start_container(con)
        return box, con, config.metadata.uid

    async def create(
        self, box: str, config: pb.PodSandboxConfig, script: str, *, program: Program | None = None
    ) -> str:
        if isinstance(self.runtime, FakeCri) and program is not None:
            self.runtime.programs["main"] = program
        container = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="main"),
            image=pb.ImageSpec(image=crinode.BUSYBOX, user_specified_image="busybox"),
            command=["sh", "-c", script],
            labels={facts.LABEL_CONTAINER_NAME: "main"},
            annotations={facts.ANNOTATION_HASH: "h", facts.ANNOTATION_RESTARTS: "4"},
            log_path="main/0.log",
        )
        return await self.runtime.create_container(box, container, config)

    async def ended(self, con: str) -> facts.ContainerFact:
        for _ in range(1000):
            fact = await self.runtime.container(con)
            if fact.state is State.EXITED:
                return fact
            await asyncio.sleep(0.01)
        raise AssertionError("did not end")


@pytest.fixture(params=["fake", "nodelet-cri"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "fake":
        fake = FakeCri(SystemClock())
        fake.add_image(crinode.BUSYBOX)
        yield World(fake, logs=tmp_path, parent="/fake")
        return
    node: crinode.CriNode = request.getfixturevalue("daemon")
    await node.connect()
    runtime = Runtime(endpoint=f"unix://{node.socket}")
    await runtime.open()
    await runtime.pull(crinode.BUSYBOX)
    yield World(runtime, logs=node.logs, parent=node.cgroup_parent)
    await runtime.close()
    await node.clean()
    await node.disconnect()


async def test_a_sandbox_has_an_address_and_stops(world: World) -> None:
    box = await world.runtime.run_sandbox(world.sandbox())
    fact = await world.runtime.sandbox(box)
    assert fact.ready and len(fact.ips) == 1
    await world.runtime.stop_sandbox(box)
    assert not (await world.runtime.sandbox(box)).ready
    await world.runtime.remove_sandbox(box)
    with pytest.raises(RuntimeNotFound):
        await world.runtime.sandbox(box)


async def test_a_container_goes_forward_only(world: World) -> None:
    config = world.sandbox()
    box = await world.runtime.run_sandbox(config)
    con = await world.create(box, config, "exit 7", program=Program(lives=0.01, exit_code=7))
    created = await world.runtime.container(con)
    assert created.state is State.CREATED and created.started_at == 0.0
    assert (created.name, created.hash, created.restart_count) == ("main", "h", 4)
    await world.runtime.start_container(con)
    dead = await world.ended(con)
    assert (dead.exit_code, dead.reason) == (7, "Error")
    assert created.created_at <= dead.started_at <= dead.finished_at
    with pytest.raises(RuntimeFailure):
        await world.runtime.start_container(con)


async def test_stop_ends_a_polite_container_with_its_own_code(world: World) -> None:
    _, con, _ = await world.launch(POLITE, program=Program(on_term=3))
    await asyncio.sleep(0.2)  # the shell sets its trap
    await world.runtime.stop_container(con, grace=30)
    fact = await world.runtime.container(con)
    assert (fact.state, fact.exit_code) == (State.EXITED, 3)
    await world.runtime.stop_container(con, grace=30)


async def test_stop_kills_a_stubborn_container_after_the_grace(world: World) -> None:
    _, con, _ = await world.launch(STUBBORN, program=Program(on_term=None))
    await asyncio.sleep(0.2)
    began = asyncio.get_running_loop().time()
    await world.runtime.stop_container(con, grace=1)
    assert 0.9 <= asyncio.get_running_loop().time() - began < 5
    assert (await world.runtime.container(con)).exit_code == 137


async def test_a_second_stop_with_less_grace_is_obeyed_at_once(world: World) -> None:
    _, con, _ = await world.launch(STUBBORN, program=Program(on_term=None))
    await asyncio.sleep(0.2)
    first = asyncio.create_task(world.runtime.stop_container(con, grace=300))
    await asyncio.sleep(0.05)
    first.cancel()
    await world.runtime.stop_container(con, grace=1)
    await asyncio.gather(first, return_exceptions=True)
    assert (await world.runtime.container(con)).exit_code == 137


async def test_removing_a_sandbox_removes_its_containers(world: World) -> None:
    box, con, _ = await world.launch("sleep 100")
    await world.runtime.stop_sandbox(box)
    await world.ended(con)
    await world.runtime.remove_sandbox(box)
    with pytest.raises(RuntimeNotFound):
        await world.runtime.container(con)


async def test_what_is_missing_is_stopped_and_removed_already(world: World) -> None:
    for call in (world.runtime.stop_sandbox, world.runtime.remove_sandbox, world.runtime.remove_container):
        await call("0" * 64)
    with pytest.raises(RuntimeNotFound):
        await world.runtime.container("0" * 64)


async def test_events_carry_the_pods_state(world: World) -> None:
    seen: list[Any] = []

    async def follow() -> None:
        async for event in world.runtime.events():
            seen.append(event)

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.1)
    box, con, uid = await world.launch("exit 5", program=Program(lives=0.01, exit_code=5))
    await world.ended(con)
    await world.runtime.remove_sandbox(box)
    for _ in range(200):
        if any(e.deleted and e.id == box for e in seen):
            break
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    mine = [e for e in seen if e.pod is not None and e.pod.uid == uid]
    ends = [e.pod.container(con) for e in mine if e.pod.container(con) is not None]
    assert any(fact.state is State.RUNNING for fact in ends)
    assert any(fact.state is State.EXITED and fact.exit_code == 5 for fact in ends)
    assert all(fact.sandbox_id == box for fact in ends)
    assert any(e.deleted and e.id == box for e in mine)


async def test_everything_is_listed_by_pod(world: World) -> None:
    box, con, uid = await world.launch("sleep 100")
    listed = (await world.runtime.pods())[uid]
    assert [b.id for b in listed.sandboxes] == [box]
    found = listed.container(con)
    assert found is not None and (found.sandbox_id, found.state) == (box, State.RUNNING)


async def test_commands_run_in_a_container(world: World) -> None:
    _, con, _ = await world.launch("sleep 100")
    if isinstance(world.runtime, FakeCri):
        return
    done = await world.runtime.exec_sync(con, ["sh", "-c", "echo out; exit 4"], timeout=10)
    assert (done.exit_code, done.stdout) == (4, b"out\n")


async def test_images_are_found_by_name_and_by_id(world: World) -> None:
    image = await world.runtime.image(crinode.BUSYBOX)
    assert image is not None and (await world.runtime.image(image.id)) is not None
    assert await world.runtime.image("registry.test/absent:1") is None
    with pytest.raises(RuntimeFailure, match="not found"):
        await world.runtime.pull("registry.test/absent:1")
