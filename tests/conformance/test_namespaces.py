"""Namespaces: what the containers of a pod share with each other and with the node."""

from __future__ import annotations

import asyncio
import os

import pytest
from criclient import CriClient

from proto.cri import runtime_pb2 as pb


def sharing(**modes) -> pb.LinuxContainerConfig:
    options = pb.NamespaceOption(**modes)
    return pb.LinuxContainerConfig(
        security_context=pb.LinuxContainerSecurityContext(namespace_options=options)
    )


async def pod(node: CriClient, **modes) -> tuple[str, pb.PodSandboxConfig]:
    config = node.sandbox_config()
    config.linux.security_context.namespace_options.CopyFrom(pb.NamespaceOption(**modes))
    if modes.get("network") == pb.NODE:
        config.hostname = ""  # as a kubelet does, because the node has its name already
    return await node.run_pod(config), config


async def start(node: CriClient, sandbox: str, config: pb.PodSandboxConfig, name: str, **modes) -> str:
    container = await node.create(sandbox, config, "sleep", "1000", name=name, linux=sharing(**modes))
    await node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    return container


async def namespaces(node: CriClient, container: str) -> dict[str, str]:
    words = "for x in ipc mnt net pid uts; do echo $x $(ls -l /proc/self/ns/$x); done"
    lines = (await node.inside(container, words)).splitlines()
    return {line.split()[0]: line.split()[-1] for line in lines}


@pytest.mark.parametrize(
    ("modes", "shared", "of_node"),
    [
        ({"pid": pb.CONTAINER}, {"ipc", "net", "uts"}, set()),
        ({"pid": pb.POD}, {"ipc", "net", "uts", "pid"}, set()),
        ({"pid": pb.NODE}, {"ipc", "net", "uts", "pid"}, {"pid"}),
        ({"pid": pb.CONTAINER, "ipc": pb.NODE}, {"ipc", "net", "uts"}, {"ipc"}),
        ({"pid": pb.CONTAINER, "network": pb.NODE}, {"ipc", "net", "uts"}, {"net", "uts"}),
    ],
)
async def test_two_containers_share_what_the_pod_says(
    node: CriClient, modes: dict[str, int], shared: set[str], of_node: set[str]
):
    sandbox, config = await pod(node, **modes)
    first = await namespaces(node, await start(node, sandbox, config, "first", **modes))
    second = await namespaces(node, await start(node, sandbox, config, "second", **modes))
    assert {name for name in first if first[name] == second[name]} == shared
    here = {name: os.readlink(f"/proc/self/ns/{name}") for name in first}
    assert {name for name in first if first[name] == here[name]} == of_node


async def test_a_pod_with_one_pid_namespace_sees_all_its_processes(node: CriClient):
    sandbox, config = await pod(node, pid=pb.POD)
    first = await start(node, sandbox, config, "first", pid=pb.POD)
    assert "sleep" not in await node.inside(first, "cat /proc/1/cmdline")
    assert (await node.inside(first, "ps")).count("sleep 1000") == 1
    await start(node, sandbox, config, "second", pid=pb.POD)
    assert (await node.inside(first, "ps")).count("sleep 1000") == 2


async def test_a_container_with_its_own_pid_namespace_is_process_one(node: CriClient):
    sandbox, config = await pod(node, pid=pb.CONTAINER)
    container = await start(node, sandbox, config, "main", pid=pb.CONTAINER)
    assert (await node.inside(container, "cat /proc/1/cmdline")).startswith("sleep")


async def test_a_debug_container_joins_its_target(node: CriClient):
    sandbox, config = await pod(node, pid=pb.CONTAINER)
    target = await start(node, sandbox, config, "target", pid=pb.CONTAINER)
    debug = await start(node, sandbox, config, "debug", pid=pb.TARGET, target_id=target)
    assert (await namespaces(node, debug))["pid"] == (await namespaces(node, target))["pid"]
    assert "sleep" in await node.inside(debug, "cat /proc/1/cmdline")


@pytest.mark.parametrize(("mode", "answer"), [(pb.NODE, "hello"), (pb.POD, "refused")])
async def test_only_a_pod_on_the_nodes_network_reaches_its_loopback(node: CriClient, mode: int, answer: str):
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        sandbox, config = await pod(node, network=mode)
        container = await start(node, sandbox, config, "main", network=mode)
        assert answer in await node.inside(container, f"nc 127.0.0.1 {port} </dev/null")
