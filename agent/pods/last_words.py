"""What a dead container left to read: its termination message, how it ended, the last lines of its log.

The text of a crash is an event's, because a crash is what people ask a node about first, and the log of a
container that has been restarted twice is gone. Lines of a log may hold what not everybody should read who
may read events: `crashLogLines: 0` in NodeletConfiguration leaves them out.
"""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

from agent.api.structs import Container, Pod
from agent.pods import spec
from agent.pods.facts import ContainerFact
from agent.pods.memory import Memory
from agent.pods.settings import PodSettings

MESSAGE_LIMIT, MESSAGES_LIMIT = 4096, 12288
"""Bytes of a termination message, and of all messages of a pod together; kubelet's figures."""
TAIL_BYTES, TAIL_LINES = 2048, 80
"""Of a termination message that is taken from the log; kubelet's figures."""
CRASH_LINE = 200
"""Characters of one log line in the text of a crash."""
OOM_KILLED = "OOMKilled"
START_ERROR = "StartError"
"""The program could not be executed at all, which the failed start has told already."""
_SIGNALLED = 128


def message_file(settings: PodSettings, pod: Pod, container: str, attempt: int) -> Path:
    """The file mounted at the container's terminationMessagePath."""
    return settings.pod_dir(pod.metadata.uid) / "containers" / container / str(attempt)


def termination_message(pod: Pod, fact: ContainerFact, settings: PodSettings) -> str:
    """A dead container's last words: its message file, or the end of its log where the policy says so."""
    share = MESSAGES_LIMIT // max(1, len(tuple(spec.every_container(pod))))
    return _last_words(pod, fact, settings)[:share]


def _last_words(pod: Pod, fact: ContainerFact, settings: PodSettings) -> str:
    container = spec.find_container(pod, fact.name)
    text = _read_tail(message_file(settings, pod, fact.name, fact.restart_count), MESSAGE_LIMIT)
    if text or container is None or container.termination_message_policy != "FallbackToLogsOnError":
        return text
    if fact.exit_code == 0 or not fact.log_path:
        return text
    return "\n".join(log_tail(fact.log_path, TAIL_LINES, size=TAIL_BYTES * 4))[-TAIL_BYTES:]


def log_tail(path: str, count: int, *, size: int) -> list[str]:
    """The texts of the last `count` records in the last `size` bytes of a CRI log; empty without a log."""
    raw = _read_tail(Path(path), size)
    lines = [words[3] for words in (line.split(" ", 3) for line in raw.splitlines()) if len(words) == 4]
    return lines[len(lines) - min(count, len(lines)) :]


def crash(pod: Pod, fact: ContainerFact, memory: Memory, settings: PodSettings) -> str:
    """The event's text for a container seen dead for the first time; empty unless it crashed before our eyes.

    A container that was told to stop, by us or by its pod's deletion, did not crash; one that died before
    this agent began to look has been told of already.
    """
    told = memory.stop is not None or fact.id in memory.killing or fact.reason == START_ERROR
    if fact.exit_code == 0 or told:
        return ""
    status = memory.status
    running = any(
        old.state.running is not None and old.container_id.endswith(f"//{fact.id}")
        for old in (*status.container_statuses, *status.init_container_statuses)
    )
    if not running and fact.id not in memory.own:
        return ""
    lines: list[str] = []
    if settings.crash_log_lines and fact.log_path:
        lines = log_tail(fact.log_path, settings.crash_log_lines, size=TAIL_BYTES * 4)
    return crash_text(fact, spec.find_container(pod, fact.name), lines)


def crash_text(fact: ContainerFact, container: Container | None, lines: list[str]) -> str:
    """`Container app was killed by SIGKILL, out of memory (limit 64Mi); last log lines: "one" "two"`."""
    text = f"Container {fact.name} {ending(fact)}"
    if fact.reason == OOM_KILLED:
        limit = container.resources.limits.get("memory") if container is not None else None
        text += f", out of memory (limit {limit})" if limit else ", out of memory"
    if not lines:
        return text
    return f"{text}; last log lines: {' '.join(quoted(line) for line in lines)}"


def ending(fact: ContainerFact) -> str:
    """`was killed by SIGSEGV` or `exited with code 3`: shells and runtimes report 128 + the signal."""
    number = fact.exit_code - _SIGNALLED
    if number in {each.value for each in signal.Signals}:
        return f"was killed by {signal.Signals(number).name} (exit code {fact.exit_code})"
    return f"exited with code {fact.exit_code}"


def quoted(line: str) -> str:
    """A line of somebody's log, in one line, without control characters and not too long."""
    shown = "".join(char if char.isprintable() else " " for char in line)
    return f'"{shown[:CRASH_LINE]}…"' if len(shown) > CRASH_LINE else f'"{shown}"'


def _read_tail(path: Path, limit: int) -> str:
    """The last bytes of a regular file as text; empty when there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            return ""
        return os.pread(fd, limit, max(0, facts.st_size - limit)).decode(errors="replace")
    finally:
        os.close(fd)
