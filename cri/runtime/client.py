"""The runtime as cri/server sees it: one asyncio object, one connection per pod's supervisor.

A request goes to the supervisor, which does everything that needs the pod's namespaces; what must be undone
after a crash (folders, cgroups, mounts) is made and taken away here, by way of `StateFolder`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cri.runtime import identity, messages
from cri.runtime.errors import StartFailed
from cri.runtime.launch import Spawner, launch_spawner
from cri.runtime.link import Link, connect
from cri.runtime.placement import Placement, plan, prepare_in_place
from cri.runtime.process import Attachment, ExecProcess
from cri.runtime.sessions import Sessions
from cri.runtime.spec import (
    ContainerFacts,
    ContainerSpec,
    Event,
    SandboxFacts,
    SandboxSpec,
)
from cri.runtime.state import StateFolder
from cri.runtime.supervisors import Supervisors
from host.cgroups import Cgroups
from host.errors import HostError, NoSpace, NotFound, TimedOut, from_errno
from host.failpoints import reach

__all__ = ["Attachment", "ExecProcess", "Runtime", "Spawner", "launch_spawner"]

_STOP_LIMIT_S = 10.0
_PATIENCE_S = 2.0
"""How long a supervisor may take to do what takes milliseconds, before it is done without it."""


class Runtime(Sessions):
    """All sandboxes and containers below one state folder.

    Errors of every method: NotFound (no such sandbox or container), InputError (a field of the spec is wrong,
    named), StartFailed (see create_container, start_container), other HostError from the kernel.
    """

    def __init__(self, state_dir: Path, *, spawner: Spawner, cgroups: Cgroups) -> None:
        """`state_dir`: normally /run/nodelet/cri; `<state_dir>/sandboxes/<id>` are its pods, 0700."""
        super().__init__(Supervisors(), StateFolder(state_dir, cgroups))
        self._spawner = spawner
        self._cgroups = cgroups
        self._held = identity.held_capabilities()

    async def close(self) -> None:
        """Drop the connections; sandboxes and containers go on."""
        self._pods.close()

    async def events(self) -> AsyncIterator[Event]:
        """Exits and lost supervisors, in order, for ever; one consumer.

        An exit is in the snapshot of `attach_sandbox` as well when it happened before the attach.
        """
        while True:
            yield await self._pods.events.get()

    def sandbox_ids(self) -> list[str]:
        """Ids that have a state folder, whether alive or not: what to attach to, or remove, at start."""
        return self._state.sandbox_ids()

    async def create_sandbox(self, spec: SandboxSpec) -> SandboxFacts:
        """Fork a supervisor and let it make the pod's namespaces. Network devices are the caller's (CNI);
        `lo` is up. A failure leaves nothing behind.

        Raises:
            Exists: there is a sandbox of this id.
        """
        cgroup = spec.cgroup_path if spec.share_pid else ""
        message = messages.sandbox(
            spec,
            birthplace=self._cgroups.birthplace(cgroup) if cgroup else None,
            tasks_files=tuple(self._cgroups.tasks_files(cgroup)) if cgroup else (),
        )
        undo = {"netns_path": message["netns_path"], "cgroup": cgroup, "share_pid": spec.share_pid}
        undo |= {"host_ipc": spec.host_ipc, "userns": message["userns"]}
        folder = self._state.make_sandbox(spec.id, undo)
        try:
            if cgroup:
                await asyncio.to_thread(self._cgroups.create, cgroup)
            reach("runtime.sandbox_recorded")
            facts = await self._spawn_surely(spec.id, folder, message)
        except BaseException:
            await self._abandon(spec.id)
            raise
        return facts

    async def _spawn_surely(self, sandbox_id: str, folder: Path, message: dict[str, Any]) -> SandboxFacts:
        """Once more where no supervisor came of it: the spawner was killed with our request in its hands.

        Raises:
            Busy: it did not happen again by chance: no process can be forked.
        """
        for _ in range(2):
            try:
                return await self._spawn(sandbox_id, folder, message)
            except NotFound:
                if (folder / "sock").exists():
                    raise
        raise from_errno(
            errno.EAGAIN, f"create sandbox {sandbox_id}", "out of processes: no supervisor is forked"
        )

    async def _spawn(self, sandbox_id: str, folder: Path, message: dict[str, Any]) -> SandboxFacts:
        ours, theirs = socket.socketpair()
        self._pods.stopping.add(sandbox_id)
        link = self._pods.adopt(sandbox_id, ours)
        answer = link.expect()
        try:
            self._spawner.spawn(os.fsencode(folder), message, theirs.fileno())
        finally:
            theirs.close()
        try:
            value, _ = await answer
        except StartFailed as exc:
            raise from_errno(exc.errno or errno.EIO, f"create sandbox {sandbox_id}", exc.message) from exc
        finally:
            self._pods.stopping.discard(sandbox_id)
        return self._sandbox_facts(sandbox_id, value)

    async def _abandon(self, sandbox_id: str) -> None:
        """Clean up after a failed create; the failure is what the caller is told."""
        with suppress(HostError):
            await self.remove_sandbox(sandbox_id)

    def _sandbox_facts(self, sandbox_id: str, value: dict[str, Any]) -> SandboxFacts:
        netns = self._state.read(self._state.sandbox(sandbox_id), "sandbox").get("netns_path")
        return SandboxFacts(
            id=sandbox_id,
            alive=True,
            pid=value["pid"],
            netns_path=Path(os.fsdecode(netns)) if netns else None,
            created_at=value["created_at"],
            containers=tuple(self._pods.remember(sandbox_id, found) for found in value["containers"]),
        )

    async def attach_sandbox(self, sandbox_id: str) -> SandboxFacts:
        """Find a sandbox again after a restart and subscribe to its events.

        With a dead supervisor the facts come from the records on disk: alive=False, and containers without a
        recorded exit are given one (code 255, error "supervisor lost") after their processes were killed.
        """
        if sandbox_id not in self._pods.links:
            try:
                self._pods.adopt(sandbox_id, connect(self._state.sandbox(sandbox_id)))
            except HostError as exc:
                if exc.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                    raise
        return await self.sandbox_facts(sandbox_id)

    async def sandbox_facts(self, sandbox_id: str) -> SandboxFacts:
        """The present facts; asks the supervisor, not the disk, while it lives."""
        messages.check_id("sandbox", sandbox_id)
        if sandbox_id in self._pods.links:
            with suppress(NotFound):
                return self._sandbox_facts(sandbox_id, await self._pods.links[sandbox_id].request("snapshot"))
        return await asyncio.to_thread(self._state.lost_facts, sandbox_id)

    async def stop_sandbox(self, sandbox_id: str) -> None:
        """Kill all its containers, wait for their exits, unbind and release the namespaces, end the
        supervisor. Call CNI DEL before. Stopping a stopped or missing sandbox succeeds (CRI: StopPodSandbox).

        Raises:
            Busy: a process cannot be killed.
        """
        messages.check_id("sandbox", sandbox_id)
        if not self._state.sandbox(sandbox_id).is_dir():
            return
        self._pods.stopping.add(sandbox_id)
        try:
            if sandbox_id not in self._pods.links:
                self._try_to_connect(sandbox_id)
            if sandbox_id in self._pods.links:
                await self._stop(sandbox_id, self._pods.links[sandbox_id])
            reach("runtime.supervisor_ended")
            await asyncio.to_thread(self._settle, sandbox_id)
        finally:
            self._pods.stopping.discard(sandbox_id)

    def _try_to_connect(self, sandbox_id: str) -> None:
        """To a supervisor that may be dead or stuck; that we have no descriptor free is no sign of either."""
        try:
            self._pods.adopt(sandbox_id, connect(self._state.sandbox(sandbox_id)))
        except NoSpace:
            raise
        except HostError:
            return

    async def _stop(self, sandbox_id: str, link: Link) -> None:
        """By asking. Where that takes too long, a container may be frozen: killed and thawed from here; or
        the supervisor is stopped, or stuck: killed as well."""
        asked = asyncio.ensure_future(_ask_to_stop(link))
        try:
            for harder in (self._state.kill_containers, self._state.kill_supervisor):
                done, _ = await asyncio.wait((asked,), timeout=_STOP_LIMIT_S / 2)
                if done:
                    await asked
                    break
                await asyncio.to_thread(harder, sandbox_id)
        finally:
            asked.cancel()
        link.close()

    def _settle(self, sandbox_id: str) -> None:
        """After the supervisor: every container has an exit on disk, and nothing is held on the host."""
        self._state.kill_supervisor(sandbox_id)
        self._state.lost_facts(sandbox_id)
        self._state.release_sandbox(sandbox_id)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Stop, then remove mounts, containers' cgroups and the state folder. Idempotent."""
        await self.stop_sandbox(sandbox_id)
        await asyncio.to_thread(self._state.remove_sandbox, sandbox_id)
        self._pods.forget(sandbox_id)

    async def create_container(self, spec: ContainerSpec) -> ContainerFacts:
        """Make the cgroup, namespaces and root file system; the process waits for `start_container`.

        Raises:
            StartFailed: the root could not be prepared; the message says which step. Nothing is left behind.
            Exists: the sandbox has a container of this id.
        """
        return await self.make_container(self.plan_container(spec))

    def plan_container(self, spec: ContainerSpec) -> Placement:
        """The first half of `create_container`: look at the whole spec and change nothing."""
        self._pods.link(spec.sandbox_id)
        messages.check_id("container", spec.id)
        return plan(spec, self._state, self._cgroups, held=self._held)

    async def make_container(self, place: Placement) -> ContainerFacts:
        """The second half of `create_container`; raises as it does, but for InputError."""
        link = self._pods.link(place.sandbox_id)
        await prepare_in_place(link, place, self._state, self._cgroups)
        try:
            reach("runtime.container_cgroup")
            return self._pods.remember(place.sandbox_id, await link.request("create", spec=place.message))
        except BaseException:
            with suppress(HostError):
                await asyncio.to_thread(self._state.remove_container, place.sandbox_id, place.id)
            raise

    async def start_container(self, sandbox_id: str, container_id: str) -> ContainerFacts:
        """Let the waiting process become the container's program (about 2 ms).

        Raises:
            StartFailed: identity, working directory or exec failed, for instance
                exec: "foo": executable file not found in $PATH. The container has then exited with code 128.
        """
        value = await self._pods.link(sandbox_id).request("start", container=container_id)
        known = self._pods.facts(sandbox_id, container_id)
        return known if known is not None and known.exit else self._pods.remember(sandbox_id, value)

    async def signal_container(
        self, sandbox_id: str, container_id: str, signal: int, *, all: bool = False
    ) -> None:
        """Signal the first process, or with `all` (and SIGKILL) every process of its cgroup.

        Nothing to do once it has exited.
        """
        fields = {"container": container_id, "signal": messages.signal_number(signal), "all": all}
        await self._pods.link(sandbox_id).request("signal", **fields)

    async def wait_container(self, sandbox_id: str, container_id: str) -> ContainerFacts:
        """Return when the container has exited (at once when it has)."""
        event = self._pods.exit_of(sandbox_id, container_id)
        facts = await self.container_facts(sandbox_id, container_id)
        if facts.exit is None:
            await event.wait()
            facts = await self.container_facts(sandbox_id, container_id)
        return facts

    async def container_facts(self, sandbox_id: str, container_id: str) -> ContainerFacts:
        """The present facts of one container."""
        for facts in (await self.sandbox_facts(sandbox_id)).containers:
            if facts.id == container_id:
                return facts
        raise NotFound(errno.ENOENT, f"container {container_id}")

    async def remove_container(self, sandbox_id: str, container_id: str, *, cgroup: str = "") -> None:
        """Kill what is left of it, remove its cgroup and state. Overlay directories are the caller's.
        Idempotent.

        Args:
            cgroup: its cgroup, where the caller knows it; our own record of it may be lost.

        Raises:
            TimedOut, Busy: a process cannot be killed (uninterruptible sleep); a later call goes on.
        """
        messages.check_id("container", container_id)
        if sandbox_id in self._pods.links:
            facts = self._pods.facts(sandbox_id, container_id)
            with suppress(NotFound):
                if facts is None or facts.exit is None:
                    await self.kill_container(sandbox_id, container_id)
                await self._let_forget(sandbox_id, container_id)
        reach("runtime.container_ended")
        self._pods.forget(sandbox_id, container_id)
        await asyncio.to_thread(self._state.remove_container, sandbox_id, container_id, cgroup=cgroup)

    async def _let_forget(self, sandbox_id: str, container_id: str) -> None:
        """Tell the supervisor that a container is no more; one that is stuck reads it when it goes on."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self._pods.link(sandbox_id).request("remove", container=container_id)

    async def kill_container(self, sandbox_id: str, container_id: str) -> None:
        """SIGKILL every process of a container, and wait until it has ended.

        A supervisor that does not manage it (it is stopped or stuck, or the container is frozen) is helped:
        the cgroup is killed and thawed from here, and where it ends without the supervisor's noticing, it is
        given the exit that the supervisor would have seen.

        Raises:
            NotFound: the supervisor knows no such container.
            TimedOut: what survives SIGKILL, by name.
        """
        if sandbox_id in self._pods.links:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE_S):
                    await self.signal_container(sandbox_id, container_id, 9, all=True)
                    await self.wait_container(sandbox_id, container_id)
                    return
        ended = self._pods.exit_of(sandbox_id, container_id)
        survivors = await asyncio.to_thread(self._state.end_container, sandbox_id, container_id)
        if survivors:
            raise TimedOut(errno.ETIMEDOUT, f"kill container {container_id}", survivors)
        if sandbox_id in self._pods.links:
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _PATIENCE_S / 2)
                return
        facts = await asyncio.to_thread(
            self._state.lost_container,
            sandbox_id,
            container_id,
            code=137,
            why="its supervisor does not answer",
        )
        self._pods.end(sandbox_id, facts)

    async def reopen_log(self, sandbox_id: str, container_id: str) -> None:
        """Close the log file and open the path again (after rotation)."""
        await self._pods.link(sandbox_id).request("reopen-log", container=container_id)

    def container_pid(self, sandbox_id: str, container_id: str) -> int:
        """Host process id of a running container, 0 otherwise; from memory, no round trip."""
        facts = self._pods.facts(sandbox_id, container_id)
        return facts.pid if facts is not None and facts.exit is None else 0


async def _ask_to_stop(link: Link) -> None:
    """Returns when the supervisor has ended."""
    with suppress(NotFound):
        await link.request("stop")
    await link.ended.wait()
