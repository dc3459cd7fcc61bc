"""What the agent relies on in a CRI runtime: the same cases for the fake of the unit tests and for
nodelet-cri."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import crinode
import grpc
import pytest
from fake_cri import FakeCri, Program

from agent.pods import facts
from agent.pods.facts import State
from agent.pods.runtime import ExecResult, Runtime, RuntimeFailure, RuntimeNotFound
from host.clocks import SystemClock
from proto.cri import runtime_pb2 as pb

_UIDS = itertools.count(1)
STUBBORN = "trap '' TERM; echo ready; while :; do sleep 1; done"
POLITE = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"


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
        self,
        box: str,
        config: pb.PodSandboxConfig,
        script: str,
        *,
        program: Program | None = None,
        argv: Sequence[str] = (),
    ) -> str:
        if isinstance(self.runtime, FakeCri) and program is not None:
            self.runtime.programs["main"] = program
        container = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="main"),
            image=pb.ImageSpec(image=crinode.BUSYBOX, user_specified_image="busybox"),
            command=argv or ["sh", "-c", script],
            labels={facts.LABEL_CONTAINER_NAME: "main"},
            annotations={facts.ANNOTATION_HASH: "h", facts.ANNOTATION_RESTARTS: "4"},
            log_path="main/0.log",
        )
        return await self.runtime.create_container(box, container, config)

    async def ready(self, con: str) -> None:
        """The shell has set its trap; the fake needs no time for that."""
        if isinstance(self.runtime, FakeCri):
            return
        log = Path((await self.runtime.container(con)).log_path)
        async with asyncio.timeout(60):
            while "ready" not in log.read_text():
                await asyncio.sleep(0.01)

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
    assert 0.0 < fact.created_at <= SystemClock().now()
    for _ in range(2):
        await world.runtime.stop_sandbox(box)
        assert not (await world.runtime.sandbox(box)).ready
    for _ in range(2):
        await world.runtime.remove_sandbox(box)
        with pytest.raises(RuntimeNotFound):
            await world.runtime.sandbox(box)


async def test_a_sandbox_on_the_hosts_network_has_no_address(world: World) -> None:
    config = world.sandbox()
    config.linux.security_context.namespace_options.network = pb.NODE
    fact = await world.runtime.sandbox(await world.runtime.run_sandbox(config))
    assert (fact.ready, fact.host_network, fact.ips) == (True, True, ())


async def test_a_second_sandbox_of_a_pod_is_newer(world: World) -> None:
    config = world.sandbox()
    first = await world.runtime.run_sandbox(config)
    await world.runtime.stop_sandbox(first)
    config.metadata.attempt = 1
    second = await world.runtime.run_sandbox(config)
    pod = (await world.runtime.pods())[config.metadata.uid]
    assert [(box.id, box.attempt, box.ready) for box in pod.sandboxes] == [
        (second, 1, True),
        (first, 0, False),
    ]


async def test_a_stopped_sandbox_takes_no_container(world: World) -> None:
    config = world.sandbox()
    box = await world.runtime.run_sandbox(config)
    await world.runtime.stop_sandbox(box)
    with pytest.raises(RuntimeFailure):
        await world.create(box, config, "true")
    with pytest.raises(RuntimeFailure):
        await world.create("0" * 64, config, "true")


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
    await world.ready(con)
    await world.runtime.stop_container(con, grace=30)
    fact = await world.runtime.container(con)
    assert (fact.state, fact.exit_code) == (State.EXITED, 3)
    await world.runtime.stop_container(con, grace=30)


async def test_stop_kills_a_stubborn_container_after_the_grace(world: World) -> None:
    _, con, _ = await world.launch(STUBBORN, program=Program(on_term=None))
    await world.ready(con)
    began = asyncio.get_running_loop().time()
    await world.runtime.stop_container(con, grace=1)
    assert 0.9 <= asyncio.get_running_loop().time() - began < 5
    assert (await world.runtime.container(con)).exit_code == 137


async def test_a_second_stop_with_less_grace_is_obeyed_at_once(world: World) -> None:
    _, con, _ = await world.launch(STUBBORN, program=Program(on_term=None))
    await world.ready(con)
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
    async with asyncio.timeout(60):
        while not seen:  # nothing tells when a stream has begun but its first event
            await world.runtime.remove_sandbox(await world.runtime.run_sandbox(world.sandbox()))
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


async def test_commands_run_in_a_running_container_only(world: World) -> None:
    config = world.sandbox()
    box = await world.runtime.run_sandbox(config)
    con = await world.create(box, config, "sleep 100", program=Program(on_term=0))
    with pytest.raises(RuntimeFailure):
        await world.runtime.exec_sync(con, ["true"], timeout=60)
    await world.runtime.start_container(con)
    script = ["sh", "-c", "echo out; exit 4"]
    if isinstance(world.runtime, FakeCri):
        world.runtime.hooks[" ".join(script)] = ExecResult(exit_code=4, stdout=b"out\n", stderr=b"")
    done = await world.runtime.exec_sync(con, script, timeout=60)
    assert (done.exit_code, done.stdout, done.stderr) == (4, b"out\n", b"")
    await world.runtime.stop_sandbox(box)
    for missing in (con, "0" * 64):
        with pytest.raises(RuntimeFailure):
            await world.runtime.exec_sync(missing, ["true"], timeout=60)


async def test_a_command_is_cut_off_in_time(world: World) -> None:
    _, con, _ = await world.launch("sleep 100")
    with pytest.raises(RuntimeFailure) as caught:
        await world.runtime.exec_sync(con, ["sleep", "60"], timeout=1)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(("script", "code", "reason"), [("exit 0", 0, "Completed"), ("exit 3", 3, "Error")])
async def test_an_exit_has_a_code_and_a_reason(world: World, script: str, code: int, reason: str) -> None:
    _, con, _ = await world.launch(script, program=Program(lives=0.01, exit_code=code))
    fact = await world.ended(con)
    assert (fact.exit_code, fact.reason) == (code, reason)


async def test_what_cannot_be_started_has_ended_without_having_begun(world: World) -> None:
    config = world.sandbox()
    box = await world.runtime.run_sandbox(config)
    con = await world.create(box, config, "", argv=["/no/such"], program=Program(refuses="no such file"))
    with pytest.raises(RuntimeFailure, match="no such file"):
        await world.runtime.start_container(con)
    fact = await world.runtime.container(con)
    assert (fact.state, fact.exit_code, fact.reason) == (State.EXITED, 128, "StartError")
    assert fact.started_at == 0.0 < fact.finished_at


async def test_a_containers_facts_are_what_it_was_made_with(world: World) -> None:
    config = world.sandbox()
    box = await world.runtime.run_sandbox(config)
    con = await world.create(box, config, "true")
    fact = await world.runtime.container(con)
    assert fact.log_path == f"{config.log_directory}/main/0.log"
    assert fact.labels == {facts.LABEL_CONTAINER_NAME: "main"}
    assert fact.annotations == {facts.ANNOTATION_HASH: "h", facts.ANNOTATION_RESTARTS: "4"}
    assert (fact.image, fact.attempt, fact.exit_code, fact.reason) == ("busybox", 0, 0, "")
    image = await world.runtime.image(crinode.BUSYBOX)
    assert fact.image_id == image.id


async def test_removing_a_running_container_ends_it(world: World) -> None:
    box, con, uid = await world.launch("sleep 100")
    for _ in range(2):
        await world.runtime.remove_container(con)
        with pytest.raises(RuntimeNotFound):
            await world.runtime.container(con)
    pod = (await world.runtime.pods())[uid]
    assert (pod.containers, [b.id for b in pod.sandboxes if b.ready]) == ((), [box])


async def test_images_are_found_by_name_and_by_id(world: World) -> None:
    image = await world.runtime.image(crinode.BUSYBOX)
    assert image is not None and (await world.runtime.image(image.id)) is not None
    assert await world.runtime.image("registry.test/absent:1") is None
    with pytest.raises(RuntimeFailure, match="not found"):
        await world.runtime.pull("registry.test/absent:1")
