"""A supervisor's memory: what a large output takes is given back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import runtime_kit
from runtime_kit import Lab

lab, pod = runtime_kit.lab, runtime_kit.pod


def anonymous_memory(pid: int) -> int:
    """KiB of anonymous memory of a process (proc_pid_smaps(5)).

    Not `Private_Dirty`: that also grows when a process which shared pages by fork, such as another
    supervisor, ends.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Anonymous:")))


async def test_a_large_output_leaves_no_buffers_behind(pod: Lab) -> None:
    supervisor = (await pod.runtime.sandbox_facts("pod")).pid
    await pod.sh("seq 1 100")
    before = anonymous_memory(supervisor)
    # Empty lines grow most in the log; megabytes would stay.
    await pod.sh("yes '' | head -c 4000000")
    async with asyncio.timeout(60):
        while anonymous_memory(supervisor) > before + 200:
            await asyncio.sleep(0.1)
