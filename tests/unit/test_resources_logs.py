"""Log rotation on real files, in virtual time."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest

from agent.resources.log_rotation import LogRotation, plan_tidy
from host.clocks import FakeClock, settle


def test_what_is_kept() -> None:
    log = Path("/l/0.log")
    names = ["0.log", "0.log.1.gz", "0.log.2.gz", "0.log.3", "1.log.9", "0.log.4.gz.tmp"]
    tidy = plan_tidy(log, names, max_files=4)
    assert tidy.compress == (Path("/l/0.log.3"),)
    assert tidy.delete == (Path("/l/0.log.1.gz"), Path("/l/0.log.4.gz.tmp"))
    assert plan_tidy(log, ["0.log"], max_files=2).delete == ()


class Refused(Exception):
    pass


async def test_no_line_is_lost_over_many_rotations(tmp_path: Path) -> None:
    path, clock, broken = tmp_path / "0.log", FakeClock(), False
    path.write_text("")
    written = 0

    async def reopen(container_id: str) -> None:
        if broken:
            raise Refused("busy")
        path.touch()

    rotation = LogRotation(
        clock=clock,
        logs=lambda: [("c1", path)],
        reopen=reopen,
        failures=(Refused,),
        max_bytes=100,
        max_files=3,
        interval=3.0,
    )
    task = asyncio.create_task(rotation.run())
    for round_ in range(4):
        with path.open("a") as file:
            for _ in range(20):
                file.write(f"line {written}\n")
                written += 1
        broken = round_ == 1
        await clock.advance(3.0)
        for _ in range(100):
            await settle()
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 3 and kept[1].name.endswith(".gz")
    text = gzip.decompress(kept[1].read_bytes()).decode() + kept[2].read_text() + kept[0].read_text()
    lines = text.split("\n")[:-1]
    assert lines == [f"line {n}" for n in range(written - len(lines), written)]
    assert len(lines) == 60, "the refused rotation kept its lines in place"


async def test_a_clock_that_was_put_back_destroys_no_rotated_log(tmp_path: Path) -> None:
    path = tmp_path / "0.log"

    async def reopen(container_id: str) -> None:
        path.touch()

    rotation = LogRotation(
        clock=FakeClock(), logs=list, reopen=reopen, failures=(OSError,), max_bytes=1, max_files=5
    )
    path.write_text("first")
    await rotation.rotate("c1", path)
    path.write_text("second")
    with pytest.raises(FileExistsError):
        await rotation.rotate("c1", path)
    (rotated,) = (file for file in tmp_path.iterdir() if file != path)
    assert (path.read_text(), gzip.decompress(rotated.read_bytes())) == ("second", b"first")
