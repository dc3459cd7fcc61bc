"""Exec and port-forward over SPDY/3.1, as kubelets, crictl and older API servers use them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import struct
from collections.abc import AsyncIterator

import pytest
from crinode import CriNode
from spdyclient import UPGRADE, SpdyClient, connect
from wsclient import Stream, open_stream, request

from host import netns
from proto.cri import runtime_pb2 as pb


async def test_exec_over_spdy(node: CriNode):
    _, container, _ = await node.launch("sleep", "1000")
    asked = pb.ExecRequest(
        container_id=container,
        cmd=["sh", "-c", "cat; echo err >&2; exit 5"],
        stdin=True,
        stdout=True,
        stderr=True,
    )
    client, writer = await connect(
        (await node.runtime.Exec(asked)).url, "v4.channel.k8s.io,v3.channel.k8s.io"
    )
    error = await client.open(streamType="error")
    stdin = await client.open(streamType="stdin")
    stdout = await client.open(streamType="stdout")
    stderr = await client.open(streamType="stderr")
    await client.ping()
    data = os.urandom(200_000)
    for at in range(0, len(data), 20_000):
        await client.send(stdin, data[at : at + 20_000])
    await client.send(stdin, b"", end=True)
    await client.wait(lambda: error in client.ended)
    assert bytes(client.output[stdout]) == data
    assert bytes(client.output[stderr]) == b"err\n"
    assert json.loads(client.output[error])["details"]["causes"][0]["message"] == "5"
    assert client.replied == {error, stdin, stdout, stderr}
    assert client.pinged == 1
    writer.close()


async def test_a_terminal_over_spdy(node: CriNode):
    _, container, _ = await node.launch("sleep", "1000")
    asked = pb.ExecRequest(container_id=container, cmd=["sh"], stdin=True, stdout=True, tty=True)
    client, writer = await connect((await node.runtime.Exec(asked)).url, "v4.channel.k8s.io")
    error = await client.open(streamType="error")
    stdin = await client.open(streamType="stdin")
    stdout = await client.open(streamType="stdout")
    resize = await client.open(streamType="resize")
    await client.send(resize, b'{"Width":111,"Height":22}\n')
    await client.send(stdin, b"busybox stty size\n")
    await client.wait(lambda: b"22 111" in client.output[stdout])
    await client.send(stdin, b"exit\n")
    await client.wait(lambda: error in client.ended)
    assert json.loads(client.output[error])["status"] == "Success"
    writer.close()


async def test_an_unknown_protocol_is_refused(node: CriNode):
    _, container, _ = await node.launch("sleep", "1000")
    asked = pb.ExecRequest(container_id=container, cmd=["sh"], stdout=True)
    head, _, writer = await request((await node.runtime.Exec(asked)).url, UPGRADE.format("v99"))
    assert head.startswith(b"HTTP/1.1 400 ")
    writer.close()


async def tunnelled(url: str) -> tuple[SpdyClient, object]:
    key = base64.b64encode(os.urandom(16)).decode()
    lines = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    lines += f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io\r\n"
    head, reader, writer = await request(url, lines)
    assert head.startswith(b"HTTP/1.1 101 "), head
    stream = Stream(reader, writer, "")

    async def read() -> bytes:
        return (await stream.read())[1]

    return SpdyClient(read, stream.send), writer


@pytest.fixture
async def echo_pod(node: CriNode) -> AsyncIterator[str]:
    """A pod on whose loopback port 8080 everything comes back."""
    sandbox = await node.run_pod(node.sandbox_config())

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    sock = netns.open_socket(node.folder / "netns" / f"cni-{sandbox}", socket.AF_INET, socket.SOCK_STREAM)
    sock.bind(("127.0.0.1", 8080))
    async with await asyncio.start_server(echo, sock=sock):
        yield sandbox


@pytest.mark.parametrize("tunnel", [False, True])
async def test_port_forward(node: CriNode, echo_pod: str, tunnel: bool):
    url = (await node.runtime.PortForward(pb.PortForwardRequest(pod_sandbox_id=echo_pod, port=[8080]))).url
    client, writer = await (tunnelled(url) if tunnel else connect(url, "portforward.k8s.io"))
    data = os.urandom(100_000)
    pairs = []
    for number in range(3):
        words = {"port": "8080", "requestID": str(number)}
        error = await client.open(streamType="error", **words)
        await client.send(error, b"", end=True)
        pairs.append((error, await client.open(streamType="data", **words)))
    for error, stream in pairs:
        for at in range(0, len(data), 25_000):
            await client.send(stream, data[at : at + 25_000])
        await client.wait(lambda stream=stream: len(client.output[stream]) == len(data))
        assert bytes(client.output[stream]) == data
        await client.send(stream, b"", end=True)
        await client.wait(lambda stream=stream: stream in client.ended)
        assert bytes(client.output[error]) == b""
    await refused(client)
    error, stream = await open_pair(client, "10")
    await client.send(stream, b"still here")
    await client.wait(lambda: bytes(client.output[stream]) == b"still here")
    writer.close()


async def open_pair(client: SpdyClient, request: str, port: str = "8080") -> tuple[int, int]:
    """Error and data stream of one connection."""
    words = {"port": port, "requestID": request}
    error = await client.open(streamType="error", **words)
    await client.send(error, b"", end=True)
    return error, await client.open(streamType="data", **words)


async def refused(client: SpdyClient) -> None:
    """A port nobody listens on: its data stream is reset, its error stream ends without a word.

    kubectl closes everything when it reads a word there.
    """
    error, stream = await open_pair(client, "9", "81")
    await client.wait(lambda: error in client.ended and stream in client.reset)
    assert bytes(client.output[error]) == b""


async def test_a_target_that_resets_ends_its_own_connection_only(node: CriNode):
    sandbox = await node.run_pod(node.sandbox_config())
    sock = netns.open_socket(node.folder / "netns" / f"cni-{sandbox}", socket.AF_INET, socket.SOCK_STREAM)
    sock.bind(("127.0.0.1", 8080))
    sock.listen()
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    request = pb.PortForwardRequest(pod_sandbox_id=sandbox, port=[8080])
    client, writer = await connect((await node.runtime.PortForward(request)).url, "portforward.k8s.io")
    for number in range(2):
        error, stream = await open_pair(client, str(number))
        await client.send(stream, b"x")
        target, _ = await loop.sock_accept(sock)
        await loop.sock_recv(target, 1)
        target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends a reset
        target.close()
        await client.wait(lambda error=error: error in client.ended)
        assert bytes(client.output[error]) == b""
    sock.close()
    writer.close()


async def test_a_client_that_gives_one_connection_up_hears_its_end(node: CriNode, echo_pod: str):
    """kubectl resets the data stream and then waits for the error stream."""
    request = pb.PortForwardRequest(pod_sandbox_id=echo_pod, port=[8080])
    client, writer = await connect((await node.runtime.PortForward(request)).url, "portforward.k8s.io")
    error, stream = await open_pair(client, "1")
    await client.send(stream, b"hello")
    await client.wait(lambda: bytes(client.output[stream]) == b"hello")
    await client.give_up(stream)
    await client.wait(lambda: error in client.ended)
    assert bytes(client.output[error]) == b""
    writer.close()


async def test_forwarding_ends_with_the_pod(node: CriNode):
    sandbox = await node.run_pod(node.sandbox_config())
    request = pb.PortForwardRequest(pod_sandbox_id=sandbox, port=[8080])
    client, writer = await connect((await node.runtime.PortForward(request)).url, "portforward.k8s.io")
    await refused(client)
    await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    await open_pair(client, "2")
    with pytest.raises(EOFError):
        await client.wait(lambda: False)
    writer.close()


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"])
async def test_port_forward_over_channels(node: CriNode, echo_pod: str, protocol: str):
    request = pb.PortForwardRequest(pod_sandbox_id=echo_pod, port=[8080, 81])
    stream = await open_stream((await node.runtime.PortForward(request)).url, protocol)
    await stream.send_on(0, b"hello")
    while bytes(stream.output[0]) != (8080).to_bytes(2, "little") + b"hello":
        await asyncio.wait_for(stream.read_message(), 20)
    while b"refused" not in stream.output[3]:
        await asyncio.wait_for(stream.read_message(), 20)
    assert bytes(stream.output[1]) == (8080).to_bytes(2, "little")
    assert bytes(stream.output[3]).startswith((81).to_bytes(2, "little"))
    stream.close()
