"""Much data through exec streams: every byte arrives, both ways, over both protocols.

NODELET_BULK_MB and NODELET_BULK_ROUNDS make the run longer than CI's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from contextlib import suppress

import pytest
from crinode import CriNode
from test_cri_spdy import connect
from wsclient import Stream, open_stream

from proto.cri import runtime_pb2 as pb

MEGABYTES = int(os.environ.get("NODELET_BULK_MB", "40"))
ROUNDS = int(os.environ.get("NODELET_BULK_ROUNDS", "3"))
PIECE = 32 << 10
_SECONDS = 300
PROTOCOLS = ("websocket", "spdy")


class Sink:
    """Where output goes: counted and hashed, not kept."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.size = 0

    def __iadd__(self, data: bytes) -> Sink:
        self.hash.update(data)
        self.size += len(data)
        return self


async def run(
    node: CriNode, container: str, protocol: str, command: tuple[str, ...], data: bytes | None = None
) -> Sink:
    """Run a command to its successful end, with input; what it wrote."""
    asked = pb.ExecRequest(container_id=container, cmd=command, stdout=True, stdin=data is not None)
    url = (await node.runtime.Exec(asked)).url
    if protocol == "websocket":
        return await run_websocket(await open_stream(url), data)
    client, writer = await connect(url, "v4.channel.k8s.io")
    error = await client.open(streamType="error")
    stdin = await client.open(streamType="stdin") if data is not None else 0
    stdout = await client.open(streamType="stdout")
    sink = client.output[stdout] = Sink()

    async def feed() -> None:
        for at in range(0, len(data or b""), PIECE):
            await client.send(stdin, (data or b"")[at : at + PIECE])
        await client.send(stdin, b"", end=True)

    feeding = asyncio.ensure_future(feed()) if data is not None else None
    async with asyncio.timeout(_SECONDS):
        await client.wait(lambda: error in client.ended)
    assert b'"Success"' in client.output[error]
    if feeding:
        await feeding
    writer.close()
    return sink


async def run_websocket(stream: Stream, data: bytes | None) -> Sink:
    sink = stream.output[1] = Sink()

    async def feed() -> None:
        for at in range(0, len(data or b""), PIECE):
            await stream.send(b"\0" + (data or b"")[at : at + PIECE])
        await stream.send(b"\xff\0")

    feeding = asyncio.ensure_future(feed()) if data is not None else None
    async with asyncio.timeout(_SECONDS):
        with suppress(EOFError):
            while True:
                await stream.read_message()
    assert json.loads(stream.output[3])["status"] == "Success"
    if feeding:
        await feeding
    stream.close()
    return sink


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_two_million_lines_are_whole_every_time(node: CriNode, protocol: str):
    """kubernetes/kubernetes#124571: output cut without an error, once in a while."""
    _, container, _ = await node.launch("sleep", "1000")
    expected = hashlib.sha256(b"".join(b"%d\n" % number for number in range(1, 2_000_001))).digest()
    for _ in range(ROUNDS):
        assert (await run(node, container, protocol, ("seq", "1", "2000000"))).hash.digest() == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_big_copy_is_equal_there_and_back(node: CriNode, protocol: str):
    """As `kubectl cp` does it: a stream into the container, then out of it."""
    _, container, _ = await node.launch("sleep", "1000")
    data = os.urandom(1 << 20) * MEGABYTES
    began = time.perf_counter()
    await run(node, container, protocol, ("sh", "-c", "cat > /tmp/copy"), data)
    between = time.perf_counter()
    back = await run(node, container, protocol, ("cat", "/tmp/copy"))
    end = time.perf_counter()
    rates = (len(data) / (between - began) / 1e6, back.size / (end - between) / 1e6)
    print(f"{protocol}: in {rates[0]:.0f} MB/s, out {rates[1]:.0f} MB/s")
    assert (back.size, back.hash.digest()) == (len(data), hashlib.sha256(data).digest())
