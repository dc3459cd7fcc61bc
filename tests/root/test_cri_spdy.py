"""Exec and port-forward over SPDY/3.1, as kubelets, crictl and older API servers use them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import AsyncIterator

import pytest
from crinode import CriNode
from spdyclient import SpdyClient
from wsclient import Stream, request

from host import netns
from proto.cri import runtime_pb2 as pb

UPGRADE = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {}\r\n"


async def connect(url: str, protocols: str) -> tuple[SpdyClient, object]:
    head, reader, writer = await request(url, UPGRADE.format(protocols))
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert f"X-Stream-Protocol-Version: {protocols.split(',')[0]}".encode() in head

    async def write(data: bytes) -> None:
        writer.write(data)
        await writer.drain()

    return SpdyClient(lambda: reader.read(65536), write), writer


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
    error = await client.open(streamType="error", port="81", requestID="9")
    await client.open(streamType="data", port="81", requestID="9")
    await client.wait(lambda: error in client.ended)
    assert b"refused" in client.output[error]
    writer.close()
