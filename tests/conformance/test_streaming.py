"""Exec, attach and port-forward over the runtime's streaming server, as a kubelet's proxy passes them on."""

from __future__ import annotations

import asyncio

import pytest
from criclient import CriClient, refused
from spdyclient import connect
from wsclient import Stream, open_stream

from proto.cri import runtime_pb2 as pb

PROTOCOL = "v4.channel.k8s.io"  # what every runtime speaks; v5 is in tests/root


async def exec_stream(node: CriClient, container: str, *command: str, **words: bool) -> Stream:
    words = {"stdout": True, "stderr": not words.get("tty", False), **words}
    asked = pb.ExecRequest(container_id=container, cmd=command, **words)
    return await open_stream((await node.runtime.Exec(asked)).url, PROTOCOL)


async def test_exec_gives_both_streams_and_the_code(node: CriClient):
    _, container, _ = await node.launch("sleep", "1000")
    stream = await exec_stream(node, container, "sh", "-c", "echo out; echo err >&2; exit 9")
    status = await stream.read_to_end()
    assert (bytes(stream.output[1]), bytes(stream.output[2])) == (b"out\n", b"err\n")
    assert status["details"]["causes"][0] == {"reason": "ExitCode", "message": "9"}


async def test_exec_passes_input(node: CriClient):
    _, container, _ = await node.launch("sleep", "1000")
    stream = await exec_stream(node, container, "head", "-n", "1", stdin=True)
    await stream.send(b"\0one two three\n")
    assert (await stream.read_to_end())["status"] == "Success"
    assert bytes(stream.output[1]) == b"one two three\n"


async def test_exec_with_a_terminal_of_the_size_given(node: CriClient):
    _, container, _ = await node.launch("sleep", "1000")
    stream = await exec_stream(node, container, "sh", stdin=True, tty=True)
    await stream.send(b'\x04{"Width":101,"Height":33}')
    await stream.send(b"\0until stty size | grep 101; do :; done; exit 0\n")
    assert (await stream.read_to_end())["status"] == "Success"
    assert b"33 101" in stream.output[1]


async def test_attach_writes_to_the_first_process(node: CriClient):
    _, container, _ = await node.launch("sh", stdin=True, stdin_once=True)
    asked = pb.AttachRequest(container_id=container, stdin=True, stdout=True, stderr=True)
    stream = await open_stream((await node.runtime.Attach(asked)).url, PROTOCOL)
    await stream.send(b"\0echo it is $((6*7))\n")
    await stream.read_until(b"it is 42")
    stream.close()


async def test_a_container_is_not_hurt_by_attaching(node: CriClient):
    _, container, _ = await node.launch("sh", "-c", "while true; do echo tick; sleep 0.1; done")
    for _ in range(2):
        asked = pb.AttachRequest(container_id=container, stdout=True)
        stream = await open_stream((await node.runtime.Attach(asked)).url, PROTOCOL)
        await stream.read_until(b"tick")
        stream.close()
    assert (await node.status(container)).state == pb.CONTAINER_RUNNING


@pytest.mark.parametrize("on_host", [False, True])
async def test_a_port_of_a_pod_is_forwarded(node: CriClient, on_host: bool):
    config = node.sandbox_config()
    if on_host:
        config.hostname = ""
        config.linux.security_context.namespace_options.network = pb.NODE
    linux = pb.LinuxContainerConfig(
        security_context=pb.LinuxContainerSecurityContext(
            namespace_options=config.linux.security_context.namespace_options
        )
    )
    script = "nc -l -p 18080 -e cat"
    sandbox, container = await node.launch_with(config, "sh", "-c", script, linux=linux)
    async with asyncio.timeout(20):
        while "18080" not in await node.inside(container, "/bin/busybox netstat -ltn"):
            await asyncio.sleep(0.05)
    asked = pb.PortForwardRequest(pod_sandbox_id=sandbox, port=[18080])
    client, connection = await connect((await node.runtime.PortForward(asked)).url, "portforward.k8s.io")
    words = {"port": "18080", "requestID": "0"}
    error = await client.open(streamType="error", **words)
    await client.send(error, b"", end=True)
    data = await client.open(streamType="data", **words)
    await client.send(data, b"there and back")
    await client.wait(lambda: bytes(client.output[data]) == b"there and back")
    assert bytes(client.output[error]) == b""
    connection.close()


async def test_what_does_not_run_has_no_streams(node: CriClient):
    sandbox, container, _ = await node.launch("true")
    await node.wait_exit(container)
    await refused(node.runtime.Exec(pb.ExecRequest(container_id=container, cmd=["id"], stdout=True)))
    await refused(node.runtime.Attach(pb.AttachRequest(container_id=container, stdout=True)))
    await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    await refused(node.runtime.PortForward(pb.PortForwardRequest(pod_sandbox_id=sandbox, port=[80])))


@pytest.mark.parametrize(
    "words", [{}, {"stdout": True, "stderr": True, "tty": True}], ids=["no stream", "terminal and stderr"]
)
async def test_streams_that_make_no_sense_are_refused(node: CriClient, words: dict[str, bool]):
    """CRI: "One of stdin, stdout, and stderr MUST be true"; "If tty is true, stderr MUST be false"."""
    _, container, _ = await node.launch("sleep", "1000")
    await refused(node.runtime.Exec(pb.ExecRequest(container_id=container, cmd=["id"], **words)))
    await refused(node.runtime.Attach(pb.AttachRequest(container_id=container, **words)))
