"""The pods of this node: the component that runs them and answers questions about them.

Where a pod goes: API watch or static manifest → store → the pod's own worker → `plan` → runtime calls; and its
facts come back: runtime events → observer → the same worker → `status` → one PATCH. This module only joins
those parts.
"""

from __future__ import annotations

from agent.api.structs import Pod


class PodManager:
    """Runs the pods of one node.

    The constructor does nothing; `run` owns every task and returns when cancelled, leaving containers running.
    """

    async def run(self) -> None:
        """Run until cancelled."""

    def pods(self) -> list[Pod]:
        """Every pod of this node with the status computed here (which the API may not have yet)."""

    def find(self, namespace: str, name: str, uid: str | None = None) -> Pod | None:
        """The pod of that name (and uid, when given), with its computed status, or None."""

    def container_id(self, namespace: str, name: str, container: str, *, previous: bool = False) -> str | None:
        """Runtime id (without scheme) of a pod's container, of the one before it when `previous`."""

    def sandbox_id(self, namespace: str, name: str) -> str | None:
        """Runtime id of the pod's ready sandbox (for port-forward)."""

    def log_path(self, namespace: str, name: str, container: str, *, previous: bool = False) -> str | None:
        """Absolute path of a container's current log file."""
