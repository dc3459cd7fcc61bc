"""host.processes: helpers get a fixed environment and a time limit, and say why they failed."""

import asyncio
import os
import signal

import pytest

from host.errors import NoSpace, NotFound, TimedOut
from host.helpers import run_async
from host.processes import ProcessFailed, run


def test_environment_is_fixed_and_input_arrives(monkeypatch):
    monkeypatch.setenv("LD_DEBUG", "none")
    done = run(["sh", "-c", "cat; env"], input=b"hello\n", env={"CNI_COMMAND": "ADD"})
    names = {line.split(b"=")[0] for line in done.stdout.splitlines()[1:]}
    assert done.stdout.startswith(b"hello\n")
    assert b"CNI_COMMAND" in names
    assert b"LD_DEBUG" not in names


@pytest.mark.parametrize("argv", [["sh", "-c", "echo no route >&2; exit 3"]])
async def test_failure_carries_the_programs_words(argv):
    with pytest.raises(ProcessFailed, match=r"sh exited with 3: .*no route"):
        run(argv)
    with pytest.raises(ProcessFailed, match=r"sh exited with 3: .*no route"):
        await run_async(argv)
    assert (await run_async(argv, check=False)).returncode == 3


async def test_missing_and_hanging_programs():
    with pytest.raises(NotFound, match="run no-such-program"):
        run(["no-such-program"])
    with pytest.raises(NotFound):
        await run_async(["no-such-program"])
    with pytest.raises(TimedOut):
        run(["sleep", "30"], timeout=0.05)
    with pytest.raises(TimedOut):
        await run_async(["sleep", "30"], timeout=0.05)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie counts as ended)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_the_children_of_a_hanging_program_are_killed_with_it(tmp_path):
    note = tmp_path / "child"
    with pytest.raises(TimedOut, match="killed after 1 s"):
        await run_async(["sh", "-c", f"sleep 1000 & echo $! >{note}; wait"], timeout=1)
    async with asyncio.timeout(20):
        while not gone(int(note.read_text())):
            await asyncio.sleep(0.01)


async def test_a_child_that_left_the_group_holds_nobody_up(tmp_path):
    """It keeps the output open; the program's own end is what counts once the time is over."""
    note = tmp_path / "child"
    with pytest.raises(TimedOut):
        await run_async(["sh", "-c", f"setsid sh -c 'echo $$ >{note}; exec sleep 1000' & wait"], timeout=1)
    os.kill(int(note.read_text()), signal.SIGKILL)


async def test_endless_output_is_an_error():
    with pytest.raises(NoSpace, match="printed more than 1000 bytes"):
        await run_async(["sh", "-c", "exec yes"], max_output=1000)


async def test_input_that_nobody_reads_and_output_of_any_size():
    done = await run_async(["sh", "-c", "exec 0<&-; head -c 3000000 /dev/zero"], input=b"x" * 1_000_000)
    assert (done.returncode, len(done.stdout)) == (0, 3_000_000)
    assert (await run_async(["cat"], input=b"y" * 1_000_000)).stdout == b"y" * 1_000_000
