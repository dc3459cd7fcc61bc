"""Crashes are told with their cause and last lines; being told to stop is no crash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from podkit import Node, deleted, make_pod, running

from agent.api.structs import Container, ResourceRequirements
from agent.pods.facts import ContainerFact, State
from agent.pods.last_words import CRASH_LINE, crash_text, ending, log_tail, quoted

DEAD = ContainerFact(id="c", name="app", state=State.EXITED, exit_code=1)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, "exited with code 1"),
        (128, "exited with code 128"),
        (137, "was killed by SIGKILL (exit code 137)"),
        (139, "was killed by SIGSEGV (exit code 139)"),
        (255, "exited with code 255"),
    ],
)
def test_exit_codes_above_128_are_signals_where_such_a_signal_exists(code: int, words: str) -> None:
    assert ending(replace(DEAD, exit_code=code)) == words


def test_out_of_memory_names_the_limit() -> None:
    fact = replace(DEAD, exit_code=137, reason="OOMKilled")
    container = Container(name="app", resources=ResourceRequirements(limits={"memory": "64Mi"}))
    assert crash_text(fact, container, []) == (
        "Container app was killed by SIGKILL (exit code 137), out of memory (limit 64Mi)"
    )
    assert crash_text(fact, None, []).endswith("out of memory")


def test_log_lines_are_quoted_cut_and_free_of_control_characters() -> None:
    assert quoted("a\x1b[31mb") == '"a [31mb"'
    assert len(quoted("x" * 1000)) == CRASH_LINE + 3
    assert crash_text(DEAD, None, ["one", "two"]) == (
        'Container app exited with code 1; last log lines: "one" "two"'
    )


def test_the_tail_of_a_log_is_its_last_records(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_text("".join(f"2026-01-01T00:00:00Z stdout F line {n}\n" for n in range(100)) + "half")
    assert log_tail(str(path), 2, size=500) == ["line 98", "line 99"]
    assert log_tail(str(path), 0, size=500) == []
    assert log_tail(str(tmp_path / "none"), 2, size=500) == []


async def test_a_crash_is_an_event_once(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        await node.put(make_pod())
        node.cri.exit(node.cri.containers()[0].id, 3)
        await node.settle()
        assert node.events.message("ContainerDied") == "Container app exited with code 3"
        await node.advance(60)
        assert node.events.reasons.count("ContainerDied") == 1


async def test_an_end_that_was_asked_for_is_no_crash(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        pod = make_pod()
        await node.put(pod)
        await node.put(deleted(pod))
        await node.settle()
        assert "ContainerDied" not in node.events.reasons


async def test_a_crash_before_the_agents_restart_is_not_told_again(tmp_path: Path) -> None:
    first = Node(tmp_path)
    async with running(first):
        await first.put(make_pod(spec={"restartPolicy": "Never"}))
        first.cri.exit(first.cri.containers()[0].id, 3)
        await first.settle()
        reported = first.pod()
    second = Node(tmp_path, cri=first.cri, clock=first.clock)
    async with running(second, reported):
        await second.advance(1)
        assert "ContainerDied" not in second.events.reasons
