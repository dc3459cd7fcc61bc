"""kill -9 of every program in turn: no container, no exit code, no log line may be lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import runtime_kit
from runtime_kit import Lab, no_leaks

from host.errors import NotFound

DAEMON = """
import asyncio, pathlib, sys
sys.path[:0] = {path!r}
import runtime_kit
async def main():
    lab = runtime_kit.Lab.__new__(runtime_kit.Lab)
    lab.base, lab.cgroup, lab.count = pathlib.Path({base!r}), {cgroup!r}, 100
    lab.image, lab.cgroups = lab.base / "image", runtime_kit.Cgroups()
    lab.spawner = runtime_kit.launch_spawner()
    lab.runtime = lab.new_runtime()
    await lab.runtime.create_sandbox(lab.sandbox())
    await lab.start("sh", "-c", {script!r}, name="talker")
    await lab.start("sleep", "1000", name="sleeper")
    await lab.runtime.create_container(lab.container("true", name="waiting"))
    print(lab.spawner.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
TALK = "i=0; while ! test -e /tmp/end; do i=$((i+1)); echo $i; sleep 0.01; done; exit 42"
lab = runtime_kit.lab


def run_daemon(lab: Lab) -> tuple[subprocess.Popen[str], int]:
    """A second process that plays nodelet-cri, and its spawner's process id."""
    text = DAEMON.format(path=sys.path, base=str(lab.base), cgroup=lab.cgroup, script=TALK)
    daemon = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    spawner = int(daemon.stdout.readline())
    daemon.stdout.close()
    return daemon, spawner


async def eventually(check: Callable[[], object], seconds: float = 5) -> None:
    """Wait until `check()` is true."""
    async with asyncio.timeout(seconds):
        while not check():
            await asyncio.sleep(0.01)


async def test_daemon_and_spawner_are_killed(lab: Lab) -> None:
    daemon, spawner = run_daemon(lab)
    os.kill(spawner, signal.SIGKILL)
    daemon.kill()
    daemon.wait()
    seen = len(lab.output("talker"))
    await eventually(lambda: len(lab.output("talker")) > seen + 5)
    (lab.base / "layers/talker/upper/tmp").mkdir(exist_ok=True)
    rooted = lab.runtime
    facts = await rooted.attach_sandbox("pod")
    assert facts.alive
    assert {item.id: item.state for item in facts.containers} == {
        "talker": "running",
        "sleeper": "running",
        "waiting": "created",
    }
    await rooted.exec_sync("pod", "talker", ("touch", "/tmp/end"), timeout=60)
    done = await rooted.wait_container("pod", "talker")
    assert done.exit is not None
    assert done.exit.code == 42
    numbers = [int(line) for line in lab.output("talker")]
    assert numbers == list(range(1, len(numbers) + 1))
    await rooted.start_container("pod", "waiting")
    assert (await rooted.wait_container("pod", "waiting")).exit is not None


async def test_exit_while_nobody_listens(lab: Lab) -> None:
    daemon, _ = run_daemon(lab)
    await lab.runtime.attach_sandbox("pod")
    daemon.kill()
    daemon.wait()
    pid = lab.runtime.container_pid("pod", "sleeper")
    await lab.runtime.close()
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: (lab.base / "state/sandboxes/pod/containers/sleeper/exit").exists())
    lab.runtime = lab.new_runtime()
    found = await lab.runtime.attach_sandbox("pod")
    codes = {item.id: item.exit.code for item in found.containers if item.exit}
    assert codes == {"sleeper": 137}


async def test_six_restarts_in_a_row(lab: Lab) -> None:
    await lab.runtime.create_sandbox(lab.sandbox())
    spec = await lab.start("sleep", "1000")
    pid = lab.runtime.container_pid("pod", spec.id)
    for _ in range(6):
        await lab.runtime.close()
        lab.runtime = lab.new_runtime()
        facts = await lab.runtime.attach_sandbox("pod")
        assert [item.pid for item in facts.containers] == [pid]


async def test_spawner_is_replaced(lab: Lab) -> None:
    with no_leaks(lab):
        await lab.runtime.create_sandbox(lab.sandbox())
        spec = await lab.start("sleep", "1000")
        first = lab.spawner.pid
        os.kill(first, signal.SIGKILL)
        await lab.runtime.create_sandbox(lab.sandbox("second"))
        assert lab.spawner.pid != first
        assert (await lab.runtime.container_facts("pod", spec.id)).state == "running"
        for name in ("pod", "second"):
            await lab.runtime.remove_sandbox(name)


async def test_supervisor_is_killed(lab: Lab) -> None:
    with no_leaks(lab):
        facts = await lab.runtime.create_sandbox(lab.sandbox())
        spec = await lab.start("sleep", "1000")
        done, _ = await lab.run("sh", "-c", "exit 9")
        assert (await anext(lab.runtime.events())).container_id == done.id
        os.kill(facts.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            assert (await anext(lab.runtime.events())).kind == "sandbox-lost"
        lost = await lab.runtime.attach_sandbox("pod")
        assert not lost.alive
        codes = {item.id: item.exit.code for item in lost.containers if item.exit}
        assert codes == {spec.id: 255, done.id: 9}
        await eventually(lambda: lab.cgroups.pids(spec.cgroup_path) == [])
        with pytest.raises(NotFound):
            await lab.runtime.start_container("pod", spec.id)
        await lab.runtime.remove_sandbox("pod")


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone"])
async def test_damaged_records(lab: Lab, damage: str) -> None:
    facts = await lab.runtime.create_sandbox(lab.sandbox())
    done, _ = await lab.run("sh", "-c", "exit 9")
    os.kill(facts.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while (await anext(lab.runtime.events())).kind != "sandbox-lost":
            pass
    path = lab.base / "state/sandboxes/pod/containers" / done.id / "exit"
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[20] ^= 1
        path.write_bytes({"cut": data[:20], "flip": data, "empty": b""}[damage])
    lost = await lab.runtime.sandbox_facts("pod")
    assert [item.exit.code for item in lost.containers if item.exit] == [255]
    await lab.runtime.remove_sandbox("pod")


@pytest.mark.parametrize("step", ["folder", "record", "cgroup"])
async def test_half_made_sandboxes_are_removed(lab: Lab, step: str) -> None:
    """A crash between any two steps of create: remove does what is left to do."""
    folder = lab.base / "state/sandboxes/half"
    with no_leaks(lab):
        folder.mkdir(parents=True)
        if step != "folder":
            from cri.runtime import record

            undo = {"netns_path": b"", "cgroup": f"{lab.cgroup}/pod-pod/half"}
            record.write(os.fsencode(folder), "sandbox", undo)
        if step == "cgroup":
            lab.cgroups.create(f"{lab.cgroup}/pod-pod/half")
        assert lab.runtime.sandbox_ids() == ["half"]
        assert not (await lab.runtime.attach_sandbox("half")).alive
        await lab.runtime.remove_sandbox("half")
    assert not folder.exists()


async def test_socket_is_for_root_only(lab: Lab) -> None:
    """SO_PEERCRED: a process of another user that got hold of the socket is not served."""
    await lab.runtime.create_sandbox(lab.sandbox())
    text = (
        "import os, socket, sys; fd = os.open(sys.argv[1], os.O_PATH); os.setuid(65534); "
        "s = socket.socket(socket.AF_UNIX); s.connect(f'/proc/self/fd/{fd}'); sys.exit(len(s.recv(1)))"
    )
    path = lab.base / "state/sandboxes/pod/sock"
    path.chmod(0o666)
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", text, str(path)], timeout=10, check=False
    )
    assert done.returncode == 0
