"""What goes in and out of a container: its log, commands run in it, and attached streams."""

from __future__ import annotations

import asyncio
import os

import pytest
import runtime_kit
from runtime_kit import Lab

from cri.runtime.errors import StartFailed
from cri.runtime.spec import ExecSpec
from host.errors import NotFound, TimedOut

lab, pod = runtime_kit.lab, runtime_kit.pod


async def read_all(fd: int | None, seconds: float = 5) -> bytes:
    """Everything until end of file (a terminal's is EIO)."""
    assert fd is not None
    loop, data = asyncio.get_running_loop(), b""
    async with asyncio.timeout(seconds):
        while True:
            readable = asyncio.Event()
            loop.add_reader(fd, readable.set)
            await readable.wait()
            loop.remove_reader(fd)
            try:
                piece = os.read(fd, 65536)
            except BlockingIOError:
                continue
            except OSError:
                return data
            if not piece:
                return data
            data += piece


class TestLogs:
    async def test_long_lines_are_cut(self, pod: Lab) -> None:
        spec = pod.container("sh", "-c", "head -c 40000 /dev/zero; echo; echo end")
        await pod.runtime.create_container(spec)
        await pod.runtime.start_container("pod", spec.id)
        await pod.runtime.wait_container("pod", spec.id)
        lines = (pod.base / "logs" / f"{spec.id}.log").read_bytes().splitlines()
        shapes = [(line.split(b" ", 3)[2], len(line.split(b" ", 3)[3])) for line in lines]
        assert shapes == [(b"P", 16384), (b"P", 16384), (b"F", 7232), (b"F", 3)]

    async def test_all_output_is_there_when_the_exit_is_told(self, pod: Lab) -> None:
        lines = await pod.sh("seq 1 20000")
        assert len(lines) == 20000


class TestExec:
    async def test_streams_code_and_place(self, pod: Lab) -> None:
        spec = await pod.start(
            "sleep", "1000", user=runtime_kit.user(name="bob"), env=(("PATH", "/bin"), ("A", "b"))
        )
        script = "echo $A; id -u; id -G; grep -c . /proc/1/cmdline; cat /proc/self/cgroup >&2; exit 3"
        done = await pod.runtime.exec_sync("pod", spec.id, ("sh", "-c", script), timeout=60)
        assert (done.code, done.stdout) == (3, b"b\n1000\n1000 2000\n1\n")
        places = {line.rpartition(b":")[2] for line in done.stderr.splitlines()}
        assert places <= {b"/", b"/exec-1"}

    async def test_not_found(self, pod: Lab) -> None:
        spec = await pod.start("sleep", "1000")
        with pytest.raises(StartFailed, match=r'exec: "nope": executable file not found in \$PATH'):
            await pod.runtime.exec_sync("pod", spec.id, ("nope",), timeout=60)

    async def test_time_limit_kills_the_group(self, pod: Lab) -> None:
        spec = await pod.start("sleep", "1000")
        with pytest.raises(TimedOut):
            await pod.runtime.exec_sync("pod", spec.id, ("sh", "-c", "sleep 777 & sleep 778"), timeout=0.2)
        done = await pod.runtime.exec_sync("pod", spec.id, ("ps",), timeout=60)
        assert b"77" not in done.stdout

    async def test_output_is_bounded(self, pod: Lab) -> None:
        spec = await pod.start("sleep", "1000")
        argv = ("sh", "-c", "yes | head -c 3000000")
        done = await pod.runtime.exec_sync("pod", spec.id, argv, timeout=60, limit=1000)
        assert (done.code, len(done.stdout), done.truncated) == (0, 1000, True)

    async def test_standard_input(self, pod: Lab) -> None:
        spec = await pod.start("sleep", "1000")
        process = await pod.runtime.exec("pod", spec.id, ExecSpec(argv=("cat",), stdin=True))
        assert process.stdin is not None
        os.write(process.stdin, b"hello")
        os.close(process.stdin)
        process.stdin = None
        assert await read_all(process.stdout) == b"hello"
        assert await process.wait() == 0
        process.close()

    async def test_terminal(self, pod: Lab) -> None:
        spec = await pod.start("sleep", "1000")
        script = "read line; echo got $line; stty size; tty"
        process = await pod.runtime.exec(
            "pod", spec.id, ExecSpec(argv=("sh", "-c", script), tty=True, stdin=True)
        )
        await process.resize(width=101, height=33)
        assert process.stdin is not None
        os.write(process.stdin, b"abc\n")
        assert b"got abc\r\n33 101\r\n/dev/pts/0\r\n" in await read_all(process.stdout)
        assert await process.wait() == 0
        process.close()

    async def test_not_in_an_exited_container(self, pod: Lab) -> None:
        facts, _ = await pod.run("true")
        with pytest.raises(NotFound, match="not running"):
            await pod.runtime.exec_sync("pod", facts.id, ("true",), timeout=60)


class TestAttach:
    async def test_input_once_and_output(self, pod: Lab) -> None:
        spec = await pod.start("sh", "-c", "cat; echo done >&2", stdin=True, stdin_once=True)
        streams = await pod.runtime.attach("pod", spec.id, stdin=True, stdout=True, stderr=True)
        assert streams.stdin is not None
        os.write(streams.stdin, b"typed\n")
        os.close(streams.stdin)
        assert await read_all(streams.stdout) == b"typed\n"
        assert await read_all(streams.stderr) == b"done\n"
        facts = await pod.runtime.wait_container("pod", spec.id)
        assert facts.exit is not None
        assert facts.exit.code == 0
        assert sorted(pod.output(spec.id)) == ["done", "typed"]
        for fd in (streams.stdout, streams.stderr):
            os.close(fd or 0)

    async def test_not_to_an_exited_container(self, pod: Lab) -> None:
        facts, _ = await pod.run("true")
        with pytest.raises(NotFound, match="not running"):
            await pod.runtime.attach("pod", facts.id, stdin=False, stdout=True, stderr=True)

    async def test_terminal_container(self, pod: Lab) -> None:
        script = "stty -echo; read line; stty size; echo got $line; readlink /proc/self/fd/0"
        spec = await pod.start("sh", "-c", script, tty=True, stdin=True)
        streams = await pod.runtime.attach("pod", spec.id, stdin=True, stdout=True, stderr=False)
        await pod.runtime.resize("pod", spec.id, width=77, height=22)
        assert streams.stdin is not None
        os.write(streams.stdin, b"abc\n")
        await pod.runtime.wait_container("pod", spec.id)
        assert [line.rstrip("\r") for line in pod.output(spec.id)][-3:] == ["22 77", "got abc", "/dev/pts/0"]
        for fd in (streams.stdin, streams.stdout):
            os.close(fd or 0)

    async def test_a_slow_reader_gets_everything(self, pod: Lab) -> None:
        """More than all pipes hold: the container waits for its reader."""
        spec = await pod.start("sh", "-c", "read go; seq 1 600000", stdin=True)
        streams = await pod.runtime.attach("pod", spec.id, stdin=True, stdout=True, stderr=False)
        os.write(streams.stdin or 0, b"go\n")
        await asyncio.sleep(0.5)
        got = await read_all(streams.stdout, 60)
        assert got == b"".join(b"%d\n" % number for number in range(1, 600001))
        await pod.runtime.wait_container("pod", spec.id)
        assert len(pod.output(spec.id)) == 600_000
        for fd in (streams.stdin, streams.stdout):
            os.close(fd or 0)

    async def test_a_reader_that_sleeps_is_cut_off(self, pod: Lab) -> None:
        spec = await pod.start("sh", "-c", "read go; yes | head -c 4000000", stdin=True)
        streams = await pod.runtime.attach("pod", spec.id, stdin=True, stdout=True, stderr=False)
        os.write(streams.stdin or 0, b"go\n")
        async with asyncio.timeout(60):
            await pod.runtime.wait_container("pod", spec.id)
        assert len(pod.output(spec.id)) == 2_000_000
        for fd in (streams.stdin, streams.stdout):
            os.close(fd or 0)
