"""The runtime's state folder, as nodelet-cri sees it: who is alive, what is left, what must be taken away.

    <state>/sandboxes/<id>/          0700, made before anything else of the sandbox
        sandbox, sandbox-copy        record: what to release (written by the client, before the supervisor)
        supervisor                   record: its process id and start time
        sock                         the supervisor's socket
        shm/                         the pod's /dev/shm, a mount
        errors                       the supervisor's standard error; empty in a good life
        containers/<id>/
            container, container-copy    record: its cgroup (written by the client, before the cgroup)
            rootfs/                  mount point; occupied only inside the container's mount namespace
            config.json, mounts/     with an external runtime: the folder is its bundle
            oci/                     what that runtime remembers of it
            started, exit            records by the supervisor

Every release is a step that succeeds when there is nothing left to do, so that a crash between two of them is
repaired by doing all of them again. The kernel is trusted, not the records: a process counts only with the
start time that was written down. All functions block for a short time.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from cri.runtime import record
from cri.runtime.spec import ContainerExit, ContainerFacts, SandboxFacts
from host import syscalls
from host.cgroups import Cgroups
from host.errors import Busy, Exists, HostError, NotFound, from_oserror
from host.failpoints import reach
from host.trees import remove_tree

LOST_CODE = 255
LOST = "supervisor lost"
_COPY = "-copy"
_KILL_LIMIT_S = 5.0
_RETRY_S = 0.02


class StateFolder:
    """Names and records below `<state>/sandboxes`."""

    def __init__(self, root: Path, cgroups: Cgroups) -> None:
        self._root = root / "sandboxes"
        self._cgroups = cgroups

    def sandbox(self, sandbox_id: str) -> Path:
        """The sandbox's folder, existing or not."""
        return self._root / sandbox_id

    def container(self, sandbox_id: str, container_id: str) -> Path:
        """The container's folder, existing or not."""
        return self._root / sandbox_id / "containers" / container_id

    def sandbox_ids(self) -> list[str]:
        """Every sandbox with a folder."""
        with suppress(FileNotFoundError):
            return sorted(os.listdir(self._root))
        return []

    def container_ids(self, sandbox_id: str) -> list[str]:
        """Every container with a folder."""
        with suppress(FileNotFoundError):
            return sorted(os.listdir(self._root / sandbox_id / "containers"))
        return []

    def make_sandbox(self, sandbox_id: str, undo: dict[str, Any]) -> Path:
        """Folder and record, before the sandbox exists.

        Raises:
            Exists: there is one already.
        """
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(self._root, 0o700)
        folder = self.sandbox(sandbox_id)
        try:
            folder.mkdir(mode=0o700)
            (folder / "containers").mkdir(mode=0o700)
        except FileExistsError as exc:
            raise Exists(errno.EEXIST, f"sandbox {sandbox_id}") from exc
        except OSError as exc:
            raise from_oserror(exc, f"make {folder}") from exc
        _write_twice(folder, "sandbox", undo)
        return folder

    def make_container(self, sandbox_id: str, container_id: str, undo: dict[str, Any]) -> Path:
        """Folder and record, before the container exists.

        Raises:
            Exists: there is one already.
            NotFound: no such sandbox.
        """
        folder = self.container(sandbox_id, container_id)
        try:
            folder.mkdir(mode=0o700)
            (folder / "rootfs").mkdir(mode=0o700)
        except FileExistsError as exc:
            raise Exists(errno.EEXIST, f"container {container_id}") from exc
        except OSError as exc:
            raise from_oserror(exc, f"make {folder}") from exc
        _write_twice(folder, "container", undo)
        return folder

    def read(self, folder: Path, name: str) -> dict[str, Any]:
        """A record, or its copy; an empty dict when both are missing or damaged: the kernel has to answer."""
        for file in (name, name + _COPY):
            with suppress(NotFound, record.BadRecord):
                found = record.read(os.fsencode(folder), file)
                if isinstance(found, dict):
                    return found
        return {}

    def supervisor_pid(self, sandbox_id: str) -> int:
        """Process id of the living supervisor, or 0."""
        found = self.read(self.sandbox(sandbox_id), "supervisor")
        pid = found.get("pid", 0)
        return pid if pid and record.start_time(pid) == found.get("start_time") else 0

    def kill_supervisor(self, sandbox_id: str) -> None:
        """For one that does not answer; its containers' first processes die with it."""
        pid = self.supervisor_pid(sandbox_id)
        if not pid:
            return
        with suppress(NotFound):
            pidfd = syscalls.pidfd_open(pid)
            try:
                if self.supervisor_pid(sandbox_id) == pid:
                    syscalls.pidfd_send_signal(pidfd, 9)
            finally:
                os.close(pidfd)

    def lost_facts(self, sandbox_id: str) -> SandboxFacts:
        """The facts of a sandbox without supervisor; what is left of its containers is killed first.

        Raises:
            NotFound: no such sandbox.
            Busy: a process cannot be killed.
        """
        folder = self.sandbox(sandbox_id)
        if not folder.is_dir():
            raise NotFound(errno.ENOENT, f"sandbox {sandbox_id}")
        undo = self.read(folder, "sandbox")
        containers = [self.lost_container(sandbox_id, name) for name in self.container_ids(sandbox_id)]
        return SandboxFacts(
            id=sandbox_id,
            alive=False,
            netns_path=Path(os.fsdecode(undo["netns_path"])) if undo.get("netns_path") else None,
            created_at=self.read(folder, "supervisor").get("created_at", 0),
            containers=tuple(found for found in containers if found.exit is not None),
        )

    def lost_container(
        self, sandbox_id: str, container_id: str, *, code: int = LOST_CODE, why: str = LOST
    ) -> ContainerFacts:
        """One container without supervisor: its recorded exit, or, once nothing of it lives, one made up.

        Raises:
            Busy: what survives SIGKILL, by name: it has not ended.
        """
        folder = self.container(sandbox_id, container_id)
        found = self.read(folder, "exit")
        if not found:
            if survivors := self.end_container(sandbox_id, container_id):
                raise Busy(errno.EBUSY, f"kill container {container_id}", survivors)
            started = self.read(folder, "started").get("started_at", 0)
            found = {
                "code": code,
                "signal": max(code - 128, 0) if code < LOST_CODE else 0,
                "finished_at": time.time_ns(),
                "oom": False,
            }
            found |= {"error": why, "created_at": started, "started_at": started}
            with suppress(OSError):
                record.write(os.fsencode(folder), "exit", found)
        return ContainerFacts(
            id=container_id,
            created_at=found["created_at"],
            started_at=found["started_at"],
            exit=ContainerExit(
                code=found["code"],
                signal=found["signal"],
                finished_at=found["finished_at"],
                oom_killed=found["oom"],
                error=found["error"],
            ),
        )

    def _kill(self, container: Path) -> None:
        cgroup = self.read(container, "container").get("cgroup", "")
        if cgroup:
            self._cgroups.kill(cgroup)

    def kill_containers(self, sandbox_id: str) -> None:
        """SIGKILL to everything in the containers of a sandbox, frozen or not."""
        for container_id in self.container_ids(sandbox_id):
            self._kill(self.container(sandbox_id, container_id))

    def end_container(self, sandbox_id: str, container_id: str) -> str:
        """Kill a container's cgroup and wait for some seconds until nothing is in it.

        Returns:
            what survives, in words; empty when nothing does.
        """
        folder = self.container(sandbox_id, container_id)
        cgroup = self.read(folder, "container").get("cgroup", "")
        deadline = time.monotonic() + _KILL_LIMIT_S
        while cgroup and (survivors := self._cgroups.survivors(cgroup)):
            if time.monotonic() >= deadline:
                return survivors
            self._cgroups.kill(cgroup)
            time.sleep(_RETRY_S)
        return ""

    def remove_container(self, sandbox_id: str, container_id: str, *, cgroup: str = "") -> None:
        """Its processes, cgroup and folder.

        Args:
            cgroup: where it is, should there be no record of that any more.

        Raises:
            Busy: a process cannot be killed; the folder stays, so that a later call goes on.
        """
        folder = self.container(sandbox_id, container_id)
        undo = self.read(folder, "container")
        if undo.get("oci"):
            from cri.runtime.oci.handlers import delete_container

            delete_container(undo["oci"], folder)
        if cgroup := undo.get("cgroup") or cgroup:
            self._cgroups.remove(cgroup)
        reach("state.container_cgroup_removed")
        remove_tree(folder)

    def release_sandbox(self, sandbox_id: str) -> None:
        """What a stopped sandbox must not keep: network namespace, shared memory, the reaper's cgroup."""
        folder = self.sandbox(sandbox_id)
        undo = self.read(folder, "sandbox")
        if undo.get("netns_path"):
            _unmount(undo["netns_path"])
            with suppress(FileNotFoundError):
                os.unlink(undo["netns_path"])
        reach("state.netns_released")
        _unmount(os.fsencode(folder / "shm"))
        reach("state.shm_released")
        if undo.get("cgroup"):
            self._cgroups.remove(undo["cgroup"])

    def remove_sandbox(self, sandbox_id: str) -> None:
        """Everything that is left of it; the record of what to undo goes last, with the folder."""
        for container_id in self.container_ids(sandbox_id):
            self.remove_container(sandbox_id, container_id)
        self.release_sandbox(sandbox_id)
        reach("state.sandbox_released")
        remove_tree(self.sandbox(sandbox_id))


def _write_twice(folder: Path, name: str, undo: dict[str, Any]) -> None:
    """What must be undone is written nowhere else, so one damaged file must not lose it."""
    for file in (name, name + _COPY):
        record.write(os.fsencode(folder), file, undo)


def _unmount(path: bytes) -> None:
    """Until nothing is mounted there: a crash may have left two layers of it."""
    while True:
        try:
            syscalls.umount(path, syscalls.MNT_DETACH)
        except HostError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT):
                return
            raise
