"""Containers: life, exit codes, status, lists, idempotence, ExecSync."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from criclient import BUSYBOX, CriClient, refused

from proto.cri import runtime_pb2 as pb

TRAP = "trap 'exit 33' {}; echo ready; while true; do sleep 0.05; done"


async def start(node: CriClient, container: str) -> None:
    await node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))


async def stop(node: CriClient, container: str, grace: int) -> None:
    await node.runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=grace))


async def listed(node: CriClient, **words) -> list[str]:
    request = pb.ListContainersRequest(filter=pb.ContainerFilter(**words))
    return [item.id for item in (await node.runtime.ListContainers(request)).containers]


async def says(node: CriClient, config: pb.PodSandboxConfig, text: str) -> None:
    async with asyncio.timeout(20):
        while text not in node.container_log(config):
            await asyncio.sleep(0.02)


async def test_a_container_is_created_running_exited_gone(node: CriClient):
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    container = await node.create(sandbox, config, "sleep", "1000", annotations={"a": "b"})
    created = await node.status(container)
    assert (created.state, created.started_at, created.finished_at) == (pb.CONTAINER_CREATED, 0, 0)
    await start(node, container)
    running = await node.status(container)
    assert running.state == pb.CONTAINER_RUNNING
    assert 0 < running.created_at <= running.started_at
    assert running.annotations == {"a": "b"}
    assert running.metadata.name == "main"
    assert running.image.image == BUSYBOX
    assert running.log_path == f"{config.log_directory}/main/0.log"
    await stop(node, container, 1)
    ended = await node.status(container)
    assert (ended.state, ended.exit_code, ended.reason) == (pb.CONTAINER_EXITED, 137, "Error")
    assert ended.finished_at >= ended.started_at
    await node.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
    assert await listed(node, id=container) == []
    code, _ = await refused(node.status(container))
    assert code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(("line", "code", "reason"), [("exit 0", 0, "Completed"), ("exit 7", 7, "Error")])
async def test_the_exit_code_is_the_programs(node: CriClient, line: str, code: int, reason: str):
    _, container, _ = await node.launch("sh", "-c", line)
    ended = await node.wait_exit(container)
    assert (ended.exit_code, ended.reason) == (code, reason)


async def test_a_program_that_is_not_there_cannot_be_started(node: CriClient):
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    container = await node.create(sandbox, config, "/no/such/program")
    _, words = await refused(start(node, container))
    assert "/no/such/program" in words
    status = await node.status(container)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 128, "StartError")
    assert status.message


async def test_stop_and_remove_may_be_repeated(node: CriClient):
    _, container, _ = await node.launch("sleep", "1000")
    for _ in range(2):
        await stop(node, container, 0)
    for _ in range(2):
        await node.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
    await stop(node, container, 0)


async def test_a_running_container_may_be_removed(node: CriClient):
    """CRI: "If the container is running, the container must be forcibly removed"."""
    _, container, _ = await node.launch("sleep", "1000")
    await node.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
    assert await listed(node, id=container) == []


async def test_a_container_is_started_once(node: CriClient):
    _, container, _ = await node.launch("sleep", "1000")
    await refused(start(node, container))
    assert (await node.status(container)).state == pb.CONTAINER_RUNNING
    await stop(node, container, 0)
    await refused(start(node, container))


async def test_the_same_request_gives_the_same_container(node: CriClient, beyond_cri: None):
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    container = await node.create(sandbox, config, "sleep", "9")
    assert await node.create(sandbox, config, "sleep", "9") == container
    assert await node.create(sandbox, config, "sleep", "9", attempt=1) != container


async def test_a_container_that_handles_the_signal_ends_by_itself(node: CriClient):
    _, container, config = await node.launch("sh", "-c", TRAP.format("TERM"))
    await says(node, config, "ready")
    await stop(node, container, 30)
    assert (await node.status(container)).exit_code == 33


async def test_the_pods_stop_signal_is_used(node: CriClient, beyond_cri: None):
    _, container, config = await node.launch("sh", "-c", TRAP.format("USR1"), stop_signal=pb.SIGUSR1)
    await says(node, config, "ready")
    await stop(node, container, 30)
    status = await node.status(container)
    assert (status.exit_code, status.stop_signal) == (33, pb.SIGUSR1)


async def test_lists_are_filtered_by_all_that_is_given(node: CriClient):
    sandbox, web, config = await node.launch("sleep", "1000", labels={"tier": "web", "of": "here"})
    data = await node.create(
        sandbox, config, "sleep", "1", name="data", labels={"tier": "data", "of": "here"}
    )
    other, _, _ = await node.launch("sleep", "1000", labels={"tier": "web"})
    assert set(await listed(node, label_selector={"of": "here"})) == {web, data}
    assert await listed(node, pod_sandbox_id=sandbox, label_selector={"tier": "web"}) == [web]
    assert await listed(node, pod_sandbox_id=other, id=web) == []
    created = pb.ContainerStateValue(state=pb.CONTAINER_CREATED)
    assert await listed(node, pod_sandbox_id=sandbox, state=created) == [data]
    assert await listed(node, id=web[:13]) == [web]


async def test_containers_of_a_pod_share_its_network_and_logs_are_apart(node: CriClient):
    config = node.sandbox_config()
    sandbox, first = await node.launch_with(config, "sh", "-c", "echo first; nc -l -p 8080 -e echo hello")
    second = await node.create(sandbox, config, "sh", "-c", "echo second; sleep 1000", name="second")
    await start(node, second)
    async with asyncio.timeout(20):
        while await node.inside(second, "nc 127.0.0.1 8080 </dev/null") != "hello":
            await asyncio.sleep(0.05)
    assert node.container_log(config) == ["first"]
    assert node.container_log(config, "second") == ["second"]
    assert (await node.status(first)).id != second


async def test_execsync_gives_both_streams_and_the_code(node: CriClient):
    _, container, _ = await node.launch("sleep", "1000")
    answer = await node.exec(container, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 5)


async def test_execsync_ends_the_program_in_time(node: CriClient):
    _, container, _ = await node.launch("sleep", "1000")
    code, _ = await refused(node.exec(container, "sleep", "4321", timeout=1))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "4321" not in await node.inside(container, "ps")


async def test_execsync_of_a_missing_program_fails(node: CriClient):
    _, container, _ = await node.launch("sleep", "1000")
    _, words = await refused(node.exec(container, "/no/such/program"))
    assert "/no/such/program" in words


async def test_execsync_needs_a_running_container(node: CriClient):
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    container = await node.create(sandbox, config, "sleep", "1000")
    await refused(node.exec(container, "true"))


async def test_command_environment_and_folder(node: CriClient):
    _, container, _ = await node.launch(
        "sh",
        args=["-c", "exec sleep 1000"],
        envs=[pb.KeyValue(key="COLOUR", value=b"red"), pb.KeyValue(key="FROM", value=b"pod")],
        working_dir="/tmp",
    )
    assert await node.inside(container, "echo $COLOUR $FROM; pwd") == "red pod\n/tmp"


async def test_events_come_in_order(node: CriClient):
    stream = node.runtime.GetContainerEvents(pb.GetEventsRequest())
    if node.name == "nodelet-cri":  # sends its headers at once; a client knows that it misses nothing after
        await stream.wait_for_connection()
    sandbox, container, _ = await node.launch("sh", "-c", "exit 3")
    seen = []
    async with asyncio.timeout(20):
        while not seen or seen[-1] != (container, pb.CONTAINER_STOPPED_EVENT):
            event = await stream.read()
            seen.append((event.container_id, event.container_event_type))
    ours = [kind for name, kind in seen if name == container]
    assert ours == [pb.CONTAINER_CREATED_EVENT, pb.CONTAINER_STARTED_EVENT, pb.CONTAINER_STOPPED_EVENT]
    assert event.pod_sandbox_status.id == sandbox
    assert event.containers_statuses[0].exit_code == 3
    stream.cancel()
