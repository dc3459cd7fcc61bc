"""The one module that starts helper programs (iptables-restore, conntrack, CNI plugins, mount helpers).

Helpers get an argv list, never a shell line; a fixed environment, never the caller's; bytes on standard
input; and a time limit after which they are killed. Container processes do not start here but in cri/runtime.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
    return shutil.which(program, path=SAFE_PATH)


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
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
    try:
        done = subprocess.run(
            list(argv), input=input, capture_output=True, timeout=timeout, env=_environment(env), check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise TimedOut(errno.ETIMEDOUT, f"run {argv[0]}", f"killed after {timeout:g} s") from exc
    except OSError as exc:
        raise from_oserror(exc, f"run {argv[0]}") from exc
    completed = Completed(done.returncode, done.stdout, done.stderr)
    if check and completed.returncode != 0:
        raise ProcessFailed(argv[0], completed)
    return completed


async def run_async(
    argv: Sequence[str],
    *,
    input: bytes = b"",
    timeout: float = 30.0,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> Completed:
    """`run` without blocking the event loop; a cancelled caller kills the helper."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(env),
        )
    except OSError as exc:
        raise from_oserror(exc, f"run {argv[0]}") from exc
    try:
        stdout, stderr = await asyncio.wait_for(process.communicate(input), timeout)
    except TimeoutError as exc:
        raise TimedOut(errno.ETIMEDOUT, f"run {argv[0]}", f"killed after {timeout:g} s") from exc
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    completed = Completed(process.returncode or 0, stdout, stderr)
    if check and completed.returncode != 0:
        raise ProcessFailed(argv[0], completed)
    return completed
