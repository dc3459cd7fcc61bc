"""host.processes: helpers get a fixed environment and a time limit, and say why they failed."""

import pytest

from host.errors import NotFound, TimedOut
from host.processes import ProcessFailed, run, run_async


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
