"""Container logs: the CRI format, and reopening after rotation."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import grpc
from criclient import CriClient, refused

from proto.cri import runtime_pb2 as pb

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(Z|[+-]\d\d:\d\d) (stdout|stderr) ([FP]) (.*)")


def log_of(config: pb.PodSandboxConfig) -> Path:
    return Path(config.log_directory, "main", "0.log")


def parsed(path: Path) -> list[tuple[str, str, str]]:
    found = []
    for line in path.read_text().splitlines():
        match = LINE.fullmatch(line)
        assert match, line[:200]
        found.append(match.group(2, 3, 4))
    return found


async def test_each_line_has_time_stream_and_tag(node: CriClient):
    _, container, config = await node.launch("sh", "-c", "echo out; echo err >&2; echo; printf open")
    await node.wait_exit(container)
    lines = parsed(log_of(config))
    assert [line for line in lines if line[0] == "stdout"][:2] == [
        ("stdout", "F", "out"),
        ("stdout", "F", ""),
    ]
    assert ("stderr", "F", "err") in lines
    assert [words for _, _, words in lines if words == "open"] == ["open"]


async def test_a_long_line_comes_in_parts(node: CriClient):
    line = "head -c 100000 /dev/zero | tr '\\0' x; echo"
    _, container, config = await node.launch("/bin/busybox", "sh", "-c", line)
    await node.wait_exit(container)
    lines = parsed(log_of(config))
    assert "".join(words for _, _, words in lines) == "x" * 100_000
    assert {tag for _, tag, _ in lines[:-1]} == {"P"}
    assert lines[-1][1] == "F"


async def test_a_terminal_has_one_stream(node: CriClient):
    _, container, config = await node.launch("sh", "-c", "echo out; echo err >&2", tty=True)
    await node.wait_exit(container)
    assert {stream for stream, _, _ in parsed(log_of(config))} == {"stdout"}


async def test_a_reopened_log_goes_on_without_loss(node: CriClient):
    script = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo $i; sleep 0.005; done"
    _, container, config = await node.launch("sh", "-c", script)
    log = log_of(config)
    async with asyncio.timeout(20):
        while len(log.read_text().splitlines()) < 20:
            await asyncio.sleep(0.02)
    rotated = log.rename(log.with_name("0.log.old"))
    await node.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=container))
    assert log.exists()
    await node.wait_exit(container)
    numbers = [int(words) for path in (rotated, log) for _, _, words in parsed(path)]
    assert numbers == list(range(1, 401))


async def test_the_log_of_what_does_not_run_is_not_reopened(node: CriClient):
    _, container, _ = await node.launch("true")
    await node.wait_exit(container)
    await refused(node.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=container)))
    code, _ = await refused(
        node.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id="none"))
    )
    assert code is grpc.StatusCode.NOT_FOUND


async def test_a_container_without_log_path_has_no_log(node: CriClient):
    config = node.sandbox_config()
    config.log_directory = ""
    _, container = await node.launch_with(config, "sh", "-c", "echo lost; exit 4")
    assert (await node.wait_exit(container)).exit_code == 4
    assert (await node.status(container)).log_path == ""
