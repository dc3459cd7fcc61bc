"""The supervisors that are connected, and the last that each has said about its containers and execs."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

from cri.runtime import messages
from cri.runtime.link import Link
from cri.runtime.spec import ContainerFacts, Event
from host.errors import NotFound, from_errno


class Supervisors:
    """One link a sandbox; what arrives on it becomes facts, events, and the ends of waits."""

    def __init__(self) -> None:
        """Nothing is connected."""
        self.links: dict[str, Link] = {}
        self.stopping: set[str] = set()
        """Sandboxes whose supervisor ends because it was told to: the end of their link is no event."""
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._facts: dict[tuple[str, str], ContainerFacts] = {}
        self._exits: dict[tuple[str, str], asyncio.Event] = {}
        self._executions: dict[tuple[str, int], asyncio.Future[int]] = {}
        self._next_exec = 1

    def close(self) -> None:
        """Hang up everywhere; supervisors go on."""
        self.stopping.update(self.links)
        for link in list(self.links.values()):
            link.close()

    def adopt(self, sandbox_id: str, sock: socket.socket) -> Link:
        """Listen to a supervisor on this connection from now on."""
        self.links[sandbox_id] = link = Link(
            sock,
            name=f"sandbox {sandbox_id}",
            on_event=lambda value: self._happened(sandbox_id, value),
            on_lost=lambda: self._lost(sandbox_id),
        )
        return link

    def link(self, sandbox_id: str) -> Link:
        """The connection to a supervisor.

        Raises:
            NotFound: there is none.
        """
        link = self.links.get(sandbox_id)
        if link is None:
            raise NotFound(errno.ENOENT, f"sandbox {sandbox_id}", "it has no running supervisor")
        return link

    def remember(self, sandbox_id: str, value: dict[str, Any]) -> ContainerFacts:
        """Take facts of a container as a supervisor sends them."""
        facts = messages.container_facts(value)
        self._take(sandbox_id, facts)
        return facts

    def end(self, sandbox_id: str, facts: ContainerFacts) -> None:
        """A container has ended, which is news."""
        self._take(sandbox_id, facts)
        event = Event(kind="exited", sandbox_id=sandbox_id, container_id=facts.id, exit=facts.exit)
        self.events.put_nowait(event)

    def _take(self, sandbox_id: str, facts: ContainerFacts) -> None:
        key = (sandbox_id, facts.id)
        self._facts[key] = facts
        if facts.exit is not None and key in self._exits:
            self._exits[key].set()

    def facts(self, sandbox_id: str, container_id: str) -> ContainerFacts | None:
        """The last facts of a container, if there were any."""
        return self._facts.get((sandbox_id, container_id))

    def exit_of(self, sandbox_id: str, container_id: str) -> asyncio.Event:
        """Set once a container has ended, or its supervisor, or it is forgotten."""
        return self._exits.setdefault((sandbox_id, container_id), asyncio.Event())

    def forget(self, sandbox_id: str, container_id: str = "") -> None:
        """Drop what is known of a container, or of all of a sandbox."""
        for key in [key for key in self._facts if key[0] == sandbox_id and container_id in ("", key[1])]:
            del self._facts[key]
        for key in [key for key in self._exits if key[0] == sandbox_id and container_id in ("", key[1])]:
            self._exits.pop(key).set()

    def expect_exec(self, sandbox_id: str) -> tuple[int, asyncio.Future[int]]:
        """A number for an exec, and what becomes its exit code."""
        number, self._next_exec = self._next_exec, self._next_exec + 1
        exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._executions[sandbox_id, number] = exited
        return number, exited

    def drop_exec(self, sandbox_id: str, number: int) -> None:
        """No exit code is expected any more."""
        self._executions.pop((sandbox_id, number), None)

    def _happened(self, sandbox_id: str, value: dict[str, Any]) -> None:
        if value["event"] == "exec":
            future = self._executions.pop((sandbox_id, value["exec"]), None)
            if future is not None and not future.done():
                future.set_result(value["code"])
        elif value["event"] == "exited":
            self.end(sandbox_id, messages.container_facts(value["facts"]))

    def _lost(self, sandbox_id: str) -> None:
        self.links.pop(sandbox_id, None)
        for key in [key for key in self._executions if key[0] == sandbox_id]:
            future = self._executions.pop(key)
            if not future.done():
                future.set_exception(from_errno(errno.ESRCH, "the sandbox's supervisor is gone"))
                future.exception()
        for (owner, _), event in self._exits.items():
            if owner == sandbox_id:
                event.set()
        if sandbox_id not in self.stopping:
            self.events.put_nowait(Event(kind="sandbox-lost", sandbox_id=sandbox_id))
