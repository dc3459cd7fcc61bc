"""A container's log: rotated, full, linked, held up. No line is lost that could be written, none twice."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import runtime_kit
from runtime_kit import Lab

from cri.runtime.spec import ContainerFacts
from host import syscalls
from host.errors import HostError

lab, pod = runtime_kit.lab, runtime_kit.pod
ROTATIONS = 50


def messages(*logs: Path) -> list[str]:
    """The text of the lines of these files."""
    return [line.split(" ", 3)[3] for log in logs for line in log.read_text().splitlines()]


async def until(pod: Lab, name: str, text: str) -> None:
    """Wait until a container has logged a line."""
    async with asyncio.timeout(30):
        while text not in pod.output(name):
            await asyncio.sleep(0.01)


async def end(pod: Lab, name: str) -> ContainerFacts:
    """Wait for a container's exit."""
    async with asyncio.timeout(60):
        return await pod.runtime.wait_container("pod", name)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """One megabyte mounted on a folder."""
    syscalls.mount("logs", os.fspath(folder), "tmpfs", 0, "size=1m")
    try:
        yield
    finally:
        syscalls.umount(os.fspath(folder), syscalls.MNT_DETACH)


async def test_every_line_is_in_one_file_over_many_rotations(pod: Lab) -> None:
    spec = await pod.start("sh", "-c", "while ! test -e /tmp/go; do seq 1 1000; done; echo end")
    log, old = pod.base / "logs" / f"{spec.id}.log", []
    for number in range(ROTATIONS):
        old.append(log.with_suffix(f".{number}"))
        log.rename(old[-1])
        await pod.runtime.reopen_log("pod", spec.id)
    await pod.runtime.exec_sync("pod", spec.id, ("touch", "/tmp/go"), timeout=30)
    await end(pod, spec.id)
    lines = messages(*old, log)
    assert lines[-1] == "end"
    assert len(lines) > ROTATIONS
    assert lines[:-1] == [str(number) for number in range(1, 1001)] * (len(lines) // 1000)


async def test_a_full_disk_loses_lines_but_not_the_container(pod: Lab) -> None:
    """What is lost is counted, the torn line ends first, and rotation to an empty disk helps."""
    logs = pod.base / "logs"
    with small_disk(logs):
        script = (
            "seq 1 200000; echo full > /tmp/full; while ! test -e /tmp/go; do sleep 0.02; done; echo after"
        )
        spec = await pod.start("sh", "-c", script)
        wait = "while ! test -e /tmp/full; do sleep 0.02; done"
        await pod.runtime.exec_sync("pod", spec.id, ("sh", "-c", wait), timeout=60)
        facts = await pod.runtime.container_facts("pod", spec.id)
        size = (logs / f"{spec.id}.log").stat().st_size
        assert size <= 1 << 20
        assert facts.exit is None
        assert facts.dropped_log_bytes > 1 << 20
        (logs / f"{spec.id}.log").unlink()
        await pod.runtime.reopen_log("pod", spec.id)
        await pod.runtime.exec_sync("pod", spec.id, ("touch", "/tmp/go"), timeout=30)
        done = await end(pod, spec.id)
        assert done.exit is not None
        assert done.exit.code == 0
        assert pod.output(spec.id)[-1] == "after"


async def test_a_torn_line_does_not_spoil_the_next(pod: Lab) -> None:
    """Room comes back without a rotation: the half line stays alone on its line."""
    logs = pod.base / "logs"
    with small_disk(logs):
        ballast = logs / "ballast"
        ballast.write_bytes(b"x" * ((1 << 20) - 8192))
        script = "seq 1 2000; while ! test -e /tmp/go; do sleep 0.02; done; echo after"
        spec = await pod.start("sh", "-c", script)
        async with asyncio.timeout(30):
            while not (await pod.runtime.container_facts("pod", spec.id)).dropped_log_bytes:
                await asyncio.sleep(0.01)
        ballast.unlink()
        await pod.runtime.exec_sync("pod", spec.id, ("touch", "/tmp/go"), timeout=30)
        await end(pod, spec.id)
        lines = (logs / f"{spec.id}.log").read_text().splitlines()
        assert lines[-1].split(" ", 1)[1] == "stdout F after"


async def test_a_stopped_supervisor_holds_output_and_loses_none(pod: Lab) -> None:
    spec = await pod.start(
        "sh", "-c", "echo begin; while ! test -e /tmp/go; do sleep 0.02; done; seq 1 300000"
    )
    await until(pod, spec.id, "begin")
    supervisor = (await pod.runtime.sandbox_facts("pod")).pid
    await pod.runtime.exec_sync("pod", spec.id, ("touch", "/tmp/go"), timeout=30)
    os.kill(supervisor, signal.SIGSTOP)
    await asyncio.sleep(0.2)
    os.kill(supervisor, signal.SIGCONT)
    facts = await end(pod, spec.id)
    assert facts.exit is not None
    assert facts.exit.code == 0
    assert pod.output(spec.id) == ["begin", *map(str, range(1, 300001))]


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder"])
async def test_a_log_is_a_plain_file_of_its_own(pod: Lab, kind: str) -> None:
    log, canary = pod.base / "logs/evil.log", pod.base / "canary"
    canary.write_text("safe")
    os.chmod(canary, 0o600)
    match kind:
        case "link":
            log.symlink_to(canary)
        case "hard link":
            log.hardlink_to(canary)
        case "pipe":
            os.mkfifo(log)
        case "folder":
            log.mkdir()
    with pytest.raises(HostError, match="open log"):
        await pod.runtime.create_container(pod.container("echo", "x", name="evil"))
    assert (canary.read_text(), canary.stat().st_mode & 0o777) == ("safe", 0o600)
    assert not (pod.base / "state/sandboxes/pod/containers/evil").exists()


async def test_a_log_is_for_its_owner_and_group(pod: Lab) -> None:
    spec = await pod.start("echo", "x")
    await end(pod, spec.id)
    found = (pod.base / "logs" / f"{spec.id}.log").stat()
    assert (found.st_mode & 0o7777, found.st_uid) == (0o640, 0)


async def test_rotation_to_an_evil_name_keeps_the_open_log(pod: Lab) -> None:
    spec = await pod.start("sh", "-c", "while ! test -e /tmp/go; do sleep 0.02; done; echo kept")
    log = pod.base / "logs" / f"{spec.id}.log"
    log.rename(log.with_suffix(".old"))
    log.symlink_to("/etc/passwd")
    with pytest.raises(HostError, match="open log"):
        await pod.runtime.reopen_log("pod", spec.id)
    await pod.runtime.exec_sync("pod", spec.id, ("touch", "/tmp/go"), timeout=30)
    await end(pod, spec.id)
    assert messages(log.with_suffix(".old")) == ["kept"]
