"""What the server needs from the rest of the agent, so that its tests need neither pods nor a runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from agent.api.structs import Pod
from agent.server.exposition import Family


class Measured(Protocol):
    """A component that counts what it does."""

    def families(self) -> Sequence[Family]:
        """What /metrics shows of it."""


class Pods(Protocol):
    """`agent.pods.manager.PodManager`, as far as the server uses it."""

    def pods(self) -> list[Pod]:
        """Every pod of this node with its computed status."""

    def find(self, namespace: str, name: str, uid: str | None = None) -> Pod | None:
        """One pod, or None."""

    def container_id(
        self, namespace: str, name: str, container: str, *, previous: bool = False
    ) -> str | None:
        """Runtime id of a pod's container, of the one before it when `previous`."""

    def sandbox_id(self, namespace: str, name: str) -> str | None:
        """Runtime id of the pod's ready sandbox."""

    def log_path(self, namespace: str, name: str, container: str, *, previous: bool = False) -> str | None:
        """Absolute path of a container's current log file."""


class Streams(Protocol):
    """`agent.pods.runtime.Runtime`, as far as the server uses it. Raises RuntimeFailure."""

    async def exec_sync(self, container_id: str, command: Sequence[str], *, timeout: float) -> Any:
        """Run a command; answers exit_code, stdout, stderr."""

    async def exec_url(
        self,
        container_id: str,
        command: Sequence[str],
        *,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> str:
        """Address of a stream that runs a command."""

    async def attach_url(
        self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> str:
        """Address of a stream attached to the first process."""

    async def port_forward_url(self, sandbox_id: str, ports: Sequence[int]) -> str:
        """Address of a stream into the sandbox's network."""

    async def container_stats(self, *, sandbox_id: str = "") -> Sequence[Any]:
        """CRI ContainerStats of every running container."""
