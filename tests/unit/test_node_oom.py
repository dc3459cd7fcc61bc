"""Kills for want of the machine's memory, from the kernel's log."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from agent.node.oom import OomWatcher, Victim, victims

MACHINE = (
    "6,900,1234,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,"
    "task_memcg=/user.slice,task=a,b=c,pid=77,uid=0\n SUBSYSTEM=x\n"
)
CGROUP = (
    "6,901,1235,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,oom_memcg=/k,"
    "task_memcg=/k/c,task=stress,pid=78,uid=0\n"
)


def test_only_the_machines_own_shortage_counts() -> None:
    assert list(victims(CGROUP + MACHINE + "6,902,1236,-;eth0: link up\n")) == [Victim("a,b=c", 77)]


async def test_the_node_tells_of_a_victim(tmp_path: Path) -> None:
    path, said = tmp_path / "kmsg", asyncio.Queue[tuple[str, str]]()
    os.mkfifo(path)
    holder = os.open(path, os.O_RDWR)
    watcher = OomWatcher(say=lambda reason, text: said.put_nowait((reason, text)), path=path)
    task = asyncio.create_task(watcher.run())
    try:
        os.write(holder, (CGROUP + MACHINE).encode())
        told = await asyncio.wait_for(said.get(), 10)
        assert told == ("SystemOOM", "System OOM encountered, victim process: a,b=c, pid: 77")
        assert said.empty()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        os.close(holder)


async def test_a_log_that_cannot_be_read_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = asyncio.create_task(OomWatcher(say=lambda *_: None, path=tmp_path / "none").run())
    await asyncio.sleep(0)
    assert "are not told" in caplog.text and not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
