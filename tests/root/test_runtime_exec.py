"""Commands run in a container end with whoever asked for them, whatever they have started."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
import runtime_kit
from runtime_kit import Lab

from cri.runtime.spec import ExecSpec
from host.errors import TimedOut

lab, pod = runtime_kit.lab, runtime_kit.pod
ESCAPE = "setsid sleep 777 & setsid sh -c 'sleep 778 & sleep 779' & sleep 780 & "
"""Children that leave the session, and so the process group, of the command."""


def members(pod: Lab, name: str) -> list[str]:
    """Command lines of a container's processes, as its cgroup lists them, those of its execs included."""
    found = []
    for pid in pod.cgroups.pids(f"{pod.cgroup}/pod-pod/{name}"):
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip())
        except OSError:
            continue
    return sorted(line for line in found if line)


def exec_cgroups(pod: Lab, name: str) -> list[str]:
    """Cgroups below the container's."""
    folder = pod.cgroups.birthplace(f"{pod.cgroup}/pod-pod/{name}")
    if folder is None:
        pytest.skip("needs cgroup2 mounted (unified or hybrid) and cgroup.kill of kernel 5.14")
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


async def only(pod: Lab, name: str, *lines: str) -> None:
    """Wait until a container has no other processes than these."""
    async with asyncio.timeout(30):
        while members(pod, name) != sorted(lines):
            await asyncio.sleep(0.01)


async def test_a_time_limit_ends_what_has_left_the_session(pod: Lab) -> None:
    spec = await pod.start("sleep", "1000")
    assert exec_cgroups(pod, spec.id) == []
    with pytest.raises(TimedOut):
        await pod.runtime.exec_sync("pod", spec.id, ("sh", "-c", ESCAPE + "sleep 781"), timeout=0.5)
    await only(pod, spec.id, "sleep 1000")
    assert (await pod.runtime.exec_sync("pod", spec.id, ("echo", "x"), timeout=30)).stdout == b"x\n"
    assert exec_cgroups(pod, spec.id) == []


async def test_a_lost_client_takes_its_commands_along(pod: Lab) -> None:
    """As when nodelet-cri is killed: nobody could read what they print any more."""
    spec = await pod.start("sleep", "1000")
    process = await pod.runtime.exec(
        "pod", spec.id, ExecSpec(argv=("sh", "-c", ESCAPE + "echo up; sleep 781"))
    )
    async with asyncio.timeout(30):
        while len(members(pod, spec.id)) < 6:
            await asyncio.sleep(0.01)
    await pod.runtime.close()
    process.close()
    await only(pod, spec.id, "sleep 1000")
    pod.runtime = pod.new_runtime()
    facts = await pod.runtime.attach_sandbox("pod")
    assert [found.exit for found in facts.containers] == [None]


async def test_what_a_command_leaves_behind_lives_on_below_the_container(pod: Lab) -> None:
    """`nohup daemon &` by exec is a habit; it is the container's then, and ends with it."""
    spec = await pod.start("sleep", "1000")
    script = "setsid sleep 777 >/dev/null 2>&1 & echo done"
    assert (await pod.runtime.exec_sync("pod", spec.id, ("sh", "-c", script), timeout=30)).stdout == b"done\n"
    await only(pod, spec.id, "sleep 1000", "sleep 777")
    assert exec_cgroups(pod, spec.id) == ["exec-1"]
    await pod.runtime.signal_container("pod", spec.id, signal.SIGKILL, all=True)
    await pod.runtime.wait_container("pod", spec.id)
    await only(pod, spec.id)
    await pod.runtime.remove_container("pod", spec.id)
    assert not pod.cgroups.exists(f"{pod.cgroup}/pod-pod/{spec.id}")


async def test_execs_leave_no_cgroup_process_or_descriptor(pod: Lab) -> None:
    spec = await pod.start("sleep", "1000")
    supervisor = (await pod.runtime.sandbox_facts("pod")).pid
    await pod.runtime.exec_sync("pod", spec.id, ("true",), timeout=30)
    before = len(os.listdir(f"/proc/{supervisor}/fd")), len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        await pod.runtime.exec_sync("pod", spec.id, ("true",), timeout=30)
    after = len(os.listdir(f"/proc/{supervisor}/fd")), len(os.listdir("/proc/self/fd"))
    assert after == before
    assert exec_cgroups(pod, spec.id) == []
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    assert len(children) == 1


async def test_a_command_that_cannot_start_leaves_nothing(pod: Lab) -> None:
    spec = await pod.start("sleep", "1000")
    with pytest.raises(OSError, match="nope"):
        await pod.runtime.exec_sync("pod", spec.id, ("nope",), timeout=30)
    assert exec_cgroups(pod, spec.id) == []


async def test_a_grandchild_that_writes_for_ever_is_not_waited_for(pod: Lab) -> None:
    spec = await pod.start("sleep", "1000")
    async with asyncio.timeout(60):
        done = await pod.runtime.exec_sync("pod", spec.id, ("sh", "-c", "yes & echo first >&2"), timeout=30)
    assert (done.code, done.stderr) == (0, b"first\n")
    assert set(done.stdout.splitlines()) <= {b"y"}


async def test_a_grandchild_that_holds_the_pipe_does_not_hide_the_output(pod: Lab) -> None:
    spec = await pod.start("sleep", "1000")
    async with asyncio.timeout(60):
        done = await pod.runtime.exec_sync(
            "pod", spec.id, ("sh", "-c", "sleep 777 & seq 1 20000"), timeout=30
        )
    assert done.stdout == b"".join(b"%d\n" % number for number in range(1, 20001))


async def test_memory_stays_flat_under_endless_output(pod: Lab) -> None:
    """What is beyond the limit is read and thrown away (CVE-2022-31030)."""
    spec = await pod.start("sleep", "1000")
    before = resident()
    argv = ("sh", "-c", "yes | head -c 300000000")
    done = await pod.runtime.exec_sync("pod", spec.id, argv, timeout=120, limit=1 << 20)
    assert (done.code, len(done.stdout), done.truncated) == (0, 1 << 20, True)
    assert resident() - before < 32 << 20


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
