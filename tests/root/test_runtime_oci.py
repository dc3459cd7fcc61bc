"""An external runtime that does not do what it should: scripts in place of one."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest
import runtime_kit
from runtime_kit import Lab, no_leaks

from cri.runtime import record
from cri.runtime.errors import StartFailed

lab, pod = runtime_kit.lab, runtime_kit.pod

PARSE = """
root= pid= log=
while [ $# -gt 0 ]; do
    case $1 in
        --root) root=$2; shift ;;
        --log) log=$2; shift ;;
        --pid-file) pid=$2; shift ;;
        create|start|kill|delete) verb=$1 ;;
    esac
    shift
done
echo $verb >>{calls}
case $verb in
"""


def runtime(folder: Path, **verbs: str) -> tuple[str]:
    """A program that runs a piece of shell for each command; those without one succeed."""
    program = folder / "oci"
    text = "#!/bin/sh\n" + PARSE.replace("{calls}", str(folder / "calls"))
    text += "".join(f"{verb}) {script} ;;\n" for verb, script in verbs.items()) + "esac\n"
    program.write_text(text)
    program.chmod(0o755)
    return (str(program),)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().split()


@pytest.mark.parametrize(
    ("verbs", "words"),
    [
        ({"create": 'echo \'{"level":"error","msg":"no luck"}\' >$log; exit 1'}, "no luck"),
        ({"create": "exit 7"}, "OCI runtime create: exit status 7"),
        ({"create": "kill -SEGV $$"}, "OCI runtime create: killed by signal 11"),
        ({"create": "exit 0"}, "init.pid"),
        ({"create": "echo x >$pid"}, "invalid literal"),
        ({"create": "echo 1 >$pid"}, "process 1 was not left to its supervisor"),
        (
            {"create": "sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >$pid", "start": "exit 3"},
            "start: exit status 3",
        ),
    ],
    ids=["words", "status", "signal", "no-pid", "no-number", "no-child", "start"],
)
async def test_a_failed_start_is_told_and_leaves_nothing(pod: Lab, verbs: dict[str, str], words: str) -> None:
    command = runtime(pod.base, **verbs)
    with no_leaks(pod):
        spec = pod.container("sleep", "1", oci_runtime=command)
        await pod.runtime.create_container(spec)
        with pytest.raises(StartFailed) as caught:
            await pod.runtime.start_container("pod", spec.id)
        assert words in str(caught.value)
        async with asyncio.timeout(60):
            facts = await pod.runtime.wait_container("pod", spec.id)
        assert facts.exit is not None
        assert (facts.exit.code, words in facts.exit.error) == (128, True)
        await pod.runtime.remove_container("pod", spec.id)


async def test_a_process_that_ends_before_start_has(pod: Lab) -> None:
    """The exit is told after the start, and is the process's own."""
    create = "(sleep 0.05; exit 5) </dev/null >/dev/null 2>&1 & echo $! >$pid"
    command = runtime(pod.base, create=create, start="sleep 0.4")
    spec = pod.container("sleep", "1", oci_runtime=command)
    await pod.runtime.create_container(spec)
    facts = await pod.runtime.start_container("pod", spec.id)
    assert facts.started_at
    async with asyncio.timeout(60):
        facts = await pod.runtime.wait_container("pod", spec.id)
    assert facts.exit is not None
    assert (facts.exit.code, facts.exit.error) == (5, "")
    assert facts.exit.finished_at >= facts.started_at


async def test_a_process_that_ends_before_create_has(pod: Lab) -> None:
    """Its status is kept until the pid file has named it."""
    create = "sh -c '(sleep 0.05; exit 6) </dev/null >/dev/null 2>&1 & echo $! >'$pid; sleep 0.2"
    command = runtime(pod.base, create=create)
    spec = pod.container("sleep", "1", oci_runtime=command)
    await pod.runtime.create_container(spec)
    await pod.runtime.start_container("pod", spec.id)
    async with asyncio.timeout(60):
        facts = await pod.runtime.wait_container("pod", spec.id)
    assert facts.exit is not None
    assert facts.exit.code == 6


@pytest.mark.parametrize("verb", ["create", "start"])
async def test_a_runtime_that_hangs_ends_with_the_pod(pod: Lab, verb: str) -> None:
    create = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >$pid"
    verbs = {"create": create, "start": "true"} | {verb: "echo >$root.hangs; sleep 1000; true"}
    command = runtime(pod.base, **verbs)
    spec = pod.container("sleep", "1", oci_runtime=command)
    await pod.runtime.create_container(spec)
    call = asyncio.ensure_future(pod.runtime.start_container("pod", spec.id))
    hangs = pod.base / "state/sandboxes/pod/containers" / spec.id / "oci.hangs"
    async with asyncio.timeout(60):
        while not hangs.exists():
            await asyncio.sleep(0.01)
    async with asyncio.timeout(60):
        await pod.runtime.stop_sandbox("pod")
    (failure,) = await asyncio.gather(call, return_exceptions=True)
    assert isinstance(failure, OSError)
    await pod.runtime.remove_sandbox("pod")
    assert pod.cgroups.pids(pod.cgroup) == []


async def test_signals_go_by_way_of_the_runtime_and_it_is_told_to_forget(pod: Lab) -> None:
    create = (
        "mkdir -p $root; sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >$pid; cp config.json {base}/seen"
    )
    command = runtime(pod.base, create=create.replace("{base}", str(pod.base)))
    spec = pod.container("sleep", "1", oci_runtime=command)
    await pod.runtime.create_container(spec)
    assert not (pod.base / "calls").exists(), "nothing is executed before the start"
    await pod.runtime.start_container("pod", spec.id)
    config = json.loads((pod.base / "seen").read_text())
    assert config["process"]["user"] == {"uid": 0, "gid": 0, "additionalGids": [0]}
    assert (
        stat.S_IMODE((pod.base / "state/sandboxes/pod/containers" / spec.id / "config.json").stat().st_mode)
        == 0o600
    )
    await pod.runtime.signal_container("pod", spec.id, 15)
    async with asyncio.timeout(60):
        while "kill" not in calls(pod.base):
            await asyncio.sleep(0.01)
    await pod.runtime.remove_container("pod", spec.id)
    assert calls(pod.base) == ["create", "start", "kill", "delete"]


async def test_a_lost_supervisors_container_is_forgotten_too(pod: Lab) -> None:
    create = "mkdir -p $root; sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >$pid"
    spec = pod.container("sleep", "1", oci_runtime=runtime(pod.base, create=create))
    await pod.runtime.create_container(spec)
    facts = await pod.runtime.start_container("pod", spec.id)
    pod.runtime._state.kill_supervisor("pod")
    await pod.runtime.remove_sandbox("pod")
    assert calls(pod.base)[-1] == "delete"
    assert record.start_time(facts.pid) == 0
    assert pod.cgroups.pids(pod.cgroup) == []
