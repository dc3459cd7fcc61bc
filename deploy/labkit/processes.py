"""Long-running programs of the lab: started in a machine, remembered by pid and start time, ended by them.

A record is written before the program's first instruction runs, so that a lab that was interrupted at any
moment still knows what it started. A pid whose start time differs belongs to somebody else and is left alone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.labkit.errors import CommandFailed, LabError

CLEAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, kw_only=True)
class Program:
    """A running program's identity.

    Attributes:
        pid: process id.
        started: field 22 of /proc/PID/stat, clock ticks since boot.
        argv: what was started.
    """

    pid: int
    started: int
    argv: tuple[str, ...]


def start_time(pid: int) -> int | None:
    """A living process's start time; None for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def alive(program: Program | None) -> bool:
    """Whether it is still that process."""
    return program is not None and start_time(program.pid) == program.started


@dataclass(frozen=True)
class Records:
    """The records of one lab's programs, one file each, named `<machine>.<program>.json`.

    Args:
        folder: where they are.
    """

    folder: Path

    def _path(self, machine: str, program: str) -> Path:
        return self.folder / f"{machine}.{program}.json"

    def read(self, machine: str, program: str) -> Program | None:
        """The record, whether or not the process lives; None if there is none that can be read."""
        try:
            data = json.loads(self._path(machine, program).read_text())
            return Program(pid=data["pid"], started=data["started"], argv=tuple(data["argv"]))
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def write(self, machine: str, program: str, found: Program) -> None:
        """Remember a process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(machine, program)
        temp = path.with_suffix(".new")
        temp.write_text(json.dumps(asdict(found)))
        temp.rename(path)

    def forget(self, machine: str, program: str) -> None:
        """Drop a record."""
        self._path(machine, program).unlink(missing_ok=True)

    def programs(self, machine: str) -> list[str]:
        """Names of a machine's recorded programs."""
        return sorted(path.name.split(".")[1] for path in self.folder.glob(f"{machine}.*.json"))


def start(
    records: Records,
    machine: str,
    program: str,
    argv: Sequence[str],
    *,
    log: Path,
    prefix: Sequence[str] = (),
    cgroups: Sequence[Path] = (),
    env: Mapping[str, str] | None = None,
) -> Program:
    """Start a program in the background, in a session of its own, its output appended to a log.

    Args:
        records: where it is remembered.
        machine: which machine of the lab it belongs to.
        program: its name there.
        argv: what to run.
        log: file for standard output and error.
        prefix: argv that enters the machine's namespaces and then executes what follows.
        cgroups: folders whose cgroup it joins before it runs.
        env: variables beside PATH and HOME.

    A shell stops itself first, is recorded, and goes on: so nothing runs unrecorded.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    joins = "".join(f"echo $$ > {folder}/cgroup.procs; " for folder in cgroups)
    script = f'set -e; {joins}read -r go; exec "$@" < /dev/null'
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", script, program, *prefix, *argv],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={"PATH": CLEAN_PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **(env or {})},
            start_new_session=True,
            cwd="/",
        )
    started = start_time(process.pid)
    if started is None:
        process.wait()
        raise LabError(f"{program} on {machine} did not start; see {log}")
    found = Program(pid=process.pid, started=started, argv=tuple(argv))
    records.write(machine, program, found)
    _children[process.pid] = process
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(b"go\n")
        process.stdin.close()
    return found


_children: dict[int, subprocess.Popen[bytes]] = {}
"""Programs this very process started: reaped when they are stopped, so that no zombie looks alive."""


KILL = ((signal.SIGKILL, 10.0),)
TERM_THEN_KILL = ((signal.SIGTERM, 10.0), *KILL)


def stop(program: Program | None, *, signals: Sequence[tuple[int, float]] = TERM_THEN_KILL) -> None:
    """End a program by these signals, waiting so many seconds after each; returns when it is gone.

    One that is gone already is fine.

    Raises:
        LabError: it is still there after the last.
    """
    if program is None:
        return
    try:
        handle = os.pidfd_open(program.pid)
    except ProcessLookupError:
        _reap(program.pid)
        return
    try:
        if not alive(program):
            return
        for number, seconds in signals:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], seconds)[0]:
                break
        else:
            raise LabError(f"process {program.pid} ({program.argv[0]}) does not end; see /proc/{program.pid}")
    finally:
        os.close(handle)
        _reap(program.pid)


def _reap(pid: int) -> None:
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]


def run(argv: Sequence[str], *, input: str = "", timeout: float = 60.0, check: bool = True) -> str:
    """Run a helper to its end; its standard output.

    Raises:
        CommandFailed: `check` and a status other than 0.
        LabError: not there, or not done in time.
    """
    try:
        done = subprocess.run(
            argv, input=input, capture_output=True, text=True, timeout=timeout, check=False, cwd="/"
        )
    except FileNotFoundError as exc:
        raise LabError(f"{argv[0]} is missing on this machine") from exc
    except subprocess.TimeoutExpired as exc:
        raise LabError(f"{' '.join(argv[:6])} was not done after {timeout:.0f} s") from exc
    if check and done.returncode != 0:
        raise CommandFailed(argv[0], done.returncode, done.stderr or done.stdout)
    return done.stdout
