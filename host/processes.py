"""The one module that starts helper programs (iptables-restore, conntrack, CNI plugins, mount helpers).

Helpers get an argv list, never a shell line; a fixed environment, never the caller's; bytes on standard
input; and a time limit after which they are killed. For programs with an event loop there is host.helpers,
apart because a CNI plugin that lives for milliseconds has no time to import asyncio. Container processes do
not start here but in cri/runtime.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from host.errors import HostError, TimedOut, from_oserror

SAFE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SAFE_ENV: Mapping[str, str] = {"PATH": SAFE_PATH, "LC_ALL": "C"}
_STDERR_TAIL = 2000


@dataclass(frozen=True)
class Completed:
    """How a helper ended: its exit status (negative: the signal) and what it printed."""

    returncode: int
    stdout: bytes
    stderr: bytes


class ProcessFailed(HostError):
    """A helper ended with another status than 0."""

    def __init__(self, program: str, done: Completed) -> None:
        tail = done.stderr[-_STDERR_TAIL:].decode(errors="replace").strip()
        super().__init__(errno.EIO, f"{program} exited with {done.returncode}", tail)
        self.program = program
        self.returncode = done.returncode
        self.stderr = tail


def which(program: str) -> str | None:
    """The absolute path of a helper on the fixed search path, or None."""
    paths = (f"{folder}/{program}" for folder in SAFE_PATH.split(":"))
    return next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), None)


def environment(env: Mapping[str, str] | None) -> dict[str, str]:
    """What a helper gets: `env` beside the fixed PATH and LC_ALL."""
    return {**SAFE_ENV, **(env or {})}


def run(
    argv: Sequence[str],
    *,
    input: bytes = b"",
    timeout: float = 30.0,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> Completed:
    """Run a helper to its end, blocking this thread.

    Args:
        argv: program and arguments; a program without a slash is looked up on the fixed path.
        input: its standard input.
        timeout: seconds after which it is killed.
        env: variables beside the fixed PATH and LC_ALL.
        check: whether a status other than 0 is an error.

    Raises:
        NotFound: no such program.
        TimedOut: killed after `timeout`.
        ProcessFailed: `check` and a status other than 0.
    """
    import subprocess  # takes longer than all that a CNI plugin does, which seldom needs a helper

    try:
        done = subprocess.run(
            list(argv), input=input, capture_output=True, timeout=timeout, env=environment(env), check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise TimedOut(errno.ETIMEDOUT, f"run {argv[0]}", f"killed after {timeout:g} s") from exc
    except OSError as exc:
        raise from_oserror(exc, f"run {argv[0]}") from exc
    completed = Completed(done.returncode, done.stdout, done.stderr)
    if check and completed.returncode != 0:
        raise ProcessFailed(argv[0], completed)
    return completed
