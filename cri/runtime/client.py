"""The runtime as cri/server sees it: one asyncio object, one connection per pod's supervisor.

Signatures first; bodies follow.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from cri.runtime.spec import ContainerFacts, ContainerSpec, Event, ExecResult, ExecSpec, SandboxFacts, SandboxSpec
from host.cgroups import Cgroups


class Spawner:
    """The small process that forks supervisors; made by `launch_spawner` before gRPC is imported."""

    def close(self) -> None:
        """End the spawner process; supervisors stay."""
        raise NotImplementedError


def launch_spawner() -> Spawner:
    """Start the spawner (sync, about 20 ms). Call first thing in main(), before grpc is imported."""
    raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """File descriptors of a running container's streams; non-blocking, owned (and closed) by the caller."""

    stdin: int | None
    """Write end (pipe, or the terminal's master); closing it is end of file when the spec has stdin_once."""
    stdout: int | None
    stderr: int | None


class ExecProcess:
    """A process started by `Runtime.exec`. It is killed when nodelet-cri goes away."""

    pid: int
    stdin: int | None
    """Write end, non-blocking, owned by the caller; with tty the terminal's master (same fd as stdout)."""
    stdout: int | None
    stderr: int | None

    async def wait(self) -> int:
        """Exit code (128 + signal when killed)."""
        raise NotImplementedError

    async def kill(self, signal: int = 9) -> None:
        """Signal the process and everything in its session; no error when it is gone."""
        raise NotImplementedError

    async def resize(self, *, width: int, height: int) -> None:
        """Set the terminal's size; only with tty."""
        raise NotImplementedError


class Runtime:
    """All sandboxes and containers below one state folder.

    Errors of every method: NotFound (no such sandbox or container), InputError (a field of the spec is wrong,
    named), StartFailed (see create_container, start_container), other HostError from the kernel.
    """

    def __init__(self, state_dir: Path, *, spawner: Spawner, cgroups: Cgroups) -> None:
        """`state_dir`: normally /run/nodelet/cri; `<state_dir>/sandboxes/<id>` are its pods, 0700."""

    async def close(self) -> None:
        """Drop the connections; sandboxes and containers go on."""
        raise NotImplementedError

    def events(self) -> AsyncIterator[Event]:
        """Exits, OOM kills and lost supervisors, in order, for ever; one consumer.

        An exit is in the snapshot of `attach_sandbox` as well when it happened before the attach.
        """
        raise NotImplementedError

    def sandbox_ids(self) -> list[str]:
        """Ids that have a state folder, whether alive or not: what to attach to, or remove, at start."""
        raise NotImplementedError

    async def create_sandbox(self, spec: SandboxSpec) -> SandboxFacts:
        """Fork a supervisor and let it make the pod's namespaces. Network devices are the caller's (CNI);
        `lo` is up. A failure leaves nothing behind.
        """
        raise NotImplementedError

    async def attach_sandbox(self, sandbox_id: str) -> SandboxFacts:
        """Find a sandbox again after a restart and subscribe to its events.

        With a dead supervisor the facts come from the records on disk: alive=False, and containers without a
        recorded exit are given one (code 255, error "supervisor lost") after their processes were killed.
        """
        raise NotImplementedError

    async def sandbox_facts(self, sandbox_id: str) -> SandboxFacts:
        """The present facts; asks the supervisor, not the disk, while it lives."""
        raise NotImplementedError

    async def stop_sandbox(self, sandbox_id: str) -> None:
        """Kill all its containers, wait for their exits, unbind and release the namespaces, end the
        supervisor. Call CNI DEL before. Stopping a stopped or missing sandbox succeeds.
        """
        raise NotImplementedError

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Stop, then remove mounts, containers' cgroups and the state folder. Idempotent."""
        raise NotImplementedError

    async def create_container(self, spec: ContainerSpec) -> ContainerFacts:
        """Make the cgroup, namespaces and root file system; the process waits for `start_container`.

        Raises:
            StartFailed: the root could not be prepared; the message says which step. Nothing is left behind.
        """
        raise NotImplementedError

    async def start_container(self, sandbox_id: str, container_id: str) -> ContainerFacts:
        """Let the waiting process become the container's program (about 2 ms).

        Raises:
            StartFailed: identity, working directory or exec failed, for instance
                exec "foo": no such file or directory. The container is then exited with code 128 (127 when
                the file is missing, 126 when it cannot be run, are left to shells).
        """
        raise NotImplementedError

    async def signal_container(self, sandbox_id: str, container_id: str, signal: int, *, all: bool = False) -> None:
        """Signal the first process, or with `all` every process of its cgroup. Nothing to do once exited."""
        raise NotImplementedError

    async def wait_container(self, sandbox_id: str, container_id: str) -> ContainerFacts:
        """Return when the container has exited (at once when it has)."""
        raise NotImplementedError

    async def remove_container(self, sandbox_id: str, container_id: str) -> None:
        """Kill what is left of it, remove its cgroup and state. Overlay directories are the caller's.
        Idempotent.
        """
        raise NotImplementedError

    async def exec(self, sandbox_id: str, container_id: str, spec: ExecSpec) -> ExecProcess:
        """Start a further process in a running container.

        Raises:
            StartFailed: the program could not be executed.
        """
        raise NotImplementedError

    async def exec_sync(
        self, sandbox_id: str, container_id: str, argv: tuple[str, ...], *, timeout: float | None, limit: int = 16 << 20
    ) -> ExecResult:
        """Run to its end and collect the output, at most `limit` bytes a stream.

        Raises:
            TimedOut: after `timeout` seconds; the process and its session are killed.
            StartFailed: the program could not be executed.
        """
        raise NotImplementedError

    async def attach(
        self, sandbox_id: str, container_id: str, *, stdin: bool, stdout: bool, stderr: bool
    ) -> Attachment:
        """Copies of the container's output from now on, and its standard input if the spec has `stdin`.

        A reader that does not keep up loses output (never the log, never the container).
        """
        raise NotImplementedError

    async def resize(self, sandbox_id: str, container_id: str, *, width: int, height: int) -> None:
        """Set the size of a tty container's terminal."""
        raise NotImplementedError

    async def reopen_log(self, sandbox_id: str, container_id: str) -> None:
        """Close the log file and open the path again (after rotation)."""
        raise NotImplementedError

    def container_pid(self, sandbox_id: str, container_id: str) -> int:
        """Host process id of a running container, 0 otherwise; from memory, no round trip."""
        raise NotImplementedError
