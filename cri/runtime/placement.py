"""Before a container is made: its folder, record and cgroup, and the message that says where they are.

Blocks for a few milliseconds; the client calls it in a thread.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

from cri.runtime import messages
from cri.runtime.devices import device_nodes, device_rules
from cri.runtime.errors import StartFailed
from cri.runtime.spec import ContainerSpec
from cri.runtime.state import StateFolder
from host.cgroups import Cgroups
from host.errors import HostError


def prepare(spec: ContainerSpec, state: StateFolder, cgroups: Cgroups, *, held: int) -> dict[str, Any]:
    """Check the spec, write the record of what is to be undone, make the cgroup.

    Args:
        held: mask of the capabilities that this process may hand on.

    Returns:
        the container for `Container`, as `messages.container` writes it.

    Raises:
        InputError: a field of the spec is wrong; nothing was made.
        Exists: the sandbox has a container of this id.
        StartFailed: the cgroup was refused; nothing is left.
    """
    sandbox = state.read(state.sandbox(spec.sandbox_id), "sandbox")
    places = _places(spec, state, cgroups, host_ipc=sandbox.get("host_ipc", False), held=held)
    message = messages.container(spec, places, share_pid=sandbox.get("share_pid", False))
    state.make_container(spec.sandbox_id, spec.id, {"cgroup": spec.cgroup_path})
    if spec.cgroup_path:
        try:
            cgroups.create(
                spec.cgroup_path, replace(spec.resources, devices=device_rules(spec, places.devices))
            )
        except HostError as exc:
            state.remove_container(spec.sandbox_id, spec.id)
            raise StartFailed(exc.errno or errno.EIO, f"cgroup: {exc}", step="cgroup") from exc
    return message


def _places(
    spec: ContainerSpec, state: StateFolder, cgroups: Cgroups, *, host_ipc: bool, held: int
) -> messages.Places:
    shm = Path("/dev/shm") if host_ipc else state.sandbox(spec.sandbox_id) / "shm"  # noqa: S108 - the node's own
    folder = state.container(spec.sandbox_id, spec.id)
    path = spec.cgroup_path
    names = [tree.name for tree in cgroups.trees]
    return messages.Places(
        mountpoint=folder / "rootfs",
        shm=shm,
        birthplace=cgroups.birthplace(path) if path else None,
        tasks_files=tuple(cgroups.tasks_files(path)) if path else (),
        procs_file=cgroups.procs_files(path)[0] if path else None,
        kill_file=cgroups.kill_file(path) if path else None,
        oom_file=cgroups.oom_file(path) if path else None,
        cgroup_dirs=tuple(zip(names, cgroups.folders(path), strict=True)) if path else (),
        cgroup_v2=cgroups.mode == "v2",
        devices=device_nodes(spec),
        held_capabilities=held,
    )
