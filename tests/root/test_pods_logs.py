"""Row B16: a counter in a real container, its log rotated under a follower: no line is missing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from podkit import Node
from test_pods_runtime import kit, shell, until

from agent.pods.runtime import RuntimeFailure
from agent.resources.log_rotation import LogRotation
from agent.server.logfiles import LogReader
from agent.server.logs import LogOptions
from host.clocks import FakeClock

__all__ = ["kit"]
LINES = 200_000
ROTATIONS = 6


async def test_b16_a_follower_sees_every_line_over_many_rotations(kit: Node) -> None:
    kit.manager.put(shell(f"busybox seq 1 {LINES}; sleep 1000", spec={"restartPolicy": "Never"}))
    await until(lambda: bool(kit.api.patches) and kit.phase() == "Running")
    identifier = kit.manager.container_id("default", "web", "app")
    path = Path(kit.manager.log_path("default", "web", "app") or "")
    assert identifier is not None
    seen = bytearray()
    done = False

    async def write(data: bytes) -> None:
        seen.extend(data)

    reader = LogReader(path, options=LogOptions(follow=True), running=lambda: not done, write=write)
    following = asyncio.create_task(reader.run())
    clock = FakeClock()
    rotation = LogRotation(
        clock=clock,
        logs=lambda: [(identifier, path)],
        reopen=kit.cri.reopen_log,
        failures=(RuntimeFailure, OSError),
        max_bytes=1,
        max_files=3,
    )
    for _ in range(ROTATIONS):
        await clock.advance(1)  # the rotated file's name has the second in it
        await rotation.rotate(identifier, path)
    await until(lambda: seen.endswith(f"\n{LINES}\n".encode()), seconds=60)
    await clock.advance(1)
    await rotation.rotate(identifier, path)
    done = True
    await asyncio.wait_for(following, 30)
    assert seen.decode().splitlines() == [str(number) for number in range(1, LINES + 1)]
    rotated = sorted(file.name for file in path.parent.iterdir() if file.name != path.name)
    assert len(rotated) == 2
    assert [name.endswith(".gz") for name in rotated] == [True, False]
