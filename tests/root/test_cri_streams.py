"""Exec and attach streams over WebSocket, against a real daemon and real containers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path

import pytest
from crinode import CriNode
from wsclient import open_stream, request

from proto.cri import runtime_pb2 as pb

ATTACHES = int(os.environ.get("NODELET_ATTACHES", "300"))


async def exec_url(node: CriNode, container: str, *command: str, **words: bool) -> str:
    words = {"stdout": True, "stderr": not words.get("tty", False), **words}
    asked = pb.ExecRequest(container_id=container, cmd=command, **words)
    return (await node.runtime.Exec(asked)).url


async def test_output_and_exit_code_arrive(node: CriNode, handler: str):
    _, container, _ = await node.launch("sleep", "1000")
    stream = await open_stream(await exec_url(node, container, "sh", "-c", "echo out; echo err >&2; exit 9"))
    status = await stream.read_to_end()
    assert (bytes(stream.output[1]), bytes(stream.output[2])) == (b"out\n", b"err\n")
    assert status["reason"] == "NonZeroExitCode"
    assert status["details"]["causes"][0] == {"reason": "ExitCode", "message": "9"}


async def test_megabytes_of_output_are_whole(node: CriNode, handler: str):
    _, container, _ = await node.launch("sleep", "1000")
    stream = await open_stream(await exec_url(node, container, "seq", "1", "1000000"))
    assert (await stream.read_to_end())["status"] == "Success"
    expected = "".join(f"{number}\n" for number in range(1, 1000001)).encode()
    assert hashlib.sha256(stream.output[1]).digest() == hashlib.sha256(expected).digest()


async def test_a_slow_reader_loses_nothing_and_blocks_nobody(node: CriNode):
    _, container, _ = await node.launch("sleep", "1000")
    stream = await open_stream(await exec_url(node, container, "seq", "1", "1000000"))
    assert (await node.exec(container, "echo", "quick")).stdout == b"quick\n"
    assert (await stream.read_to_end())["status"] == "Success"
    assert len(stream.output[1]) == 6888896


async def test_input_and_its_end_reach_the_program(node: CriNode, handler: str):
    _, container, _ = await node.launch("sleep", "1000")
    stream = await open_stream(await exec_url(node, container, "cat", stdin=True))
    data = os.urandom(300_000)
    for at in range(0, len(data), 30_000):
        await stream.send(b"\0" + data[at : at + 30_000])
    await stream.send(b"\xff\0")
    assert (await stream.read_to_end())["status"] == "Success"
    assert bytes(stream.output[1]) == data


async def test_a_terminal_has_the_size_it_is_given(node: CriNode, handler: str):
    _, container, _ = await node.launch("sleep", "1000")
    stream = await open_stream(await exec_url(node, container, "sh", stdin=True, tty=True))
    await stream.send(b'\4{"Width":123,"Height":45}')
    await stream.send(b"\0busybox stty size; tty\n")
    await stream.read_until(b"45 123")
    await stream.send(b"\0exit 4\n")
    status = await stream.read_to_end()
    assert status["details"]["causes"][0]["message"] == "4"


async def test_a_process_left_behind_does_not_hold_the_stream(node: CriNode, handler: str):
    _, container, _ = await node.launch("sleep", "1000")
    stream = await open_stream(await exec_url(node, container, "sh", "-c", "sleep 500 & echo started"))
    assert (await stream.read_to_end())["status"] == "Success"
    assert bytes(stream.output[1]) == b"started\n"


async def test_a_client_that_goes_away_takes_its_program_along(node: CriNode, handler: str):
    _, container, _ = await node.launch("sleep", "1000")
    stream = await open_stream(
        await exec_url(node, container, "sh", "-c", "echo up; exec sleep 777", stdin=True)
    )
    await stream.read_until(b"up")
    stream.close()
    for _ in range(100):
        if b"777" not in (await node.exec(container, "sh", "-c", "cat /proc/[0-9]*/cmdline")).stdout:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the program still runs")


async def test_a_client_is_missed_even_while_its_input_is_not_read(node: CriNode):
    """`kubectl exec -i pod -- sleep < big` killed: the program takes no input, so nobody reads the socket."""
    _, container, _ = await node.launch("sleep", "1000")
    stream = await open_stream(
        await exec_url(node, container, "sh", "-c", "echo up; exec sleep 777", stdin=True)
    )
    await stream.read_until(b"up")
    await stream.send(b"\0" + bytes(1 << 19))
    await stream.send(b"\0" + bytes(1 << 16))
    stream.close()
    async with asyncio.timeout(30):
        while b"777" in (await node.exec(container, "sh", "-c", "cat /proc/[0-9]*/cmdline")).stdout:
            await asyncio.sleep(0.02)


async def test_attaching_and_dropping_leaves_nothing(node: CriNode):
    """CVE-2022-23471, CVE-2025-64329. The last ones of a lap may still be on their way out."""
    _, container, _ = await node.launch("sh", "-c", "while read line; do echo $line; done", stdin=True)
    asked = pb.AttachRequest(container_id=container, stdin=True, stdout=True, stderr=True)
    info = (
        await node.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container, verbose=True))
    ).info
    supervisor = int(
        Path(f"/proc/{json.loads(info['info'])['pid']}/stat").read_text().rsplit(")")[1].split()[1]
    )

    async def lap(rounds: int) -> None:
        for number in range(rounds):
            stream = await open_stream((await node.runtime.Attach(asked)).url)
            if number % 2:
                await stream.send(b'\4{"Width":80,"Height":24}')
            stream.close()

    def held() -> tuple[int, int]:
        return len(os.listdir(f"/proc/{node.pid}/fd")), len(os.listdir(f"/proc/{supervisor}/fd"))

    before = held()
    await lap(ATTACHES)
    async with asyncio.timeout(30):
        while held() != before:
            await asyncio.sleep(0.05)


async def test_a_missing_program_is_told(node: CriNode, handler: str):
    _, container, _ = await node.launch("sleep", "1000")
    stream = await open_stream(await exec_url(node, container, "/none"))
    status = await stream.read_to_end()
    assert status["status"] == "Failure"
    assert "/none" in status["message"]


async def test_an_address_is_good_once(node: CriNode):
    _, container, _ = await node.launch("sleep", "1000")
    url = await exec_url(node, container, "echo", "x")
    assert url.startswith("http://127.0.0.1:")
    await (await open_stream(url)).read_to_end()
    for bad in (url, url[:-1], url.replace("/exec/", "/attach/"), url.rsplit("/", 1)[0] + "/"):
        head, _, writer = await request(bad, "Upgrade: websocket\r\nConnection: Upgrade\r\n")
        assert head.startswith(b"HTTP/1.1 404 ")
        writer.close()


@pytest.mark.parametrize(
    "lines", ["", "Upgrade: h2c\r\nConnection: Upgrade\r\n", "Upgrade: websocket\r\nConnection: Upgrade\r\n"]
)
async def test_another_kind_of_request_is_refused(node: CriNode, lines: str):
    _, container, _ = await node.launch("sleep", "1000")
    head, _, writer = await request(await exec_url(node, container, "echo"), lines)
    assert head.startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_attach_shows_output_from_now_on(node: CriNode, handler: str):
    script, before = "while read line; do echo got $line; done", len(node.log())
    _, container, _ = await node.launch("sh", "-c", script, stdin=True)
    asked = pb.AttachRequest(container_id=container, stdin=True, stdout=True, stderr=True)
    stream = await open_stream((await node.runtime.Attach(asked)).url)
    await stream.send(b"\0hello\n")
    await stream.read_until(b"got hello")
    await node.runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=0))
    assert (await stream.read_to_end())["status"] == "Success"
    assert node.traceback(since=before) == ""


async def test_attach_to_what_has_ended_meanwhile_is_an_error(node: CriNode):
    """`kubectl run -i` looks into the log then; a success would look like a program that printed nothing."""
    _, container, _ = await node.launch("sh", "-c", "echo printed; read line", stdin=True)
    asked = pb.AttachRequest(container_id=container, stdin=True, stdout=True, stderr=True)
    url = (await node.runtime.Attach(asked)).url
    await node.runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=0))
    status = await (await open_stream(url)).read_to_end()
    assert status["status"] == "Failure" and "not running" in status["message"]


async def test_what_a_full_disk_costs_the_log_is_told(node: CriNode):
    """The count is 0 for a container whose log is whole; it is part of the verbose status."""
    _, container, _ = await node.launch("sh", "-c", "echo x; sleep 1000")
    request = pb.ContainerStatusRequest(container_id=container, verbose=True)
    details = json.loads((await node.runtime.ContainerStatus(request)).info["info"])
    assert details["droppedLogBytes"] == 0
