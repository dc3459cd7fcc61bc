"""Before a container is made: its folder, record and cgroup, and the message that says where they are.

`prepare` blocks for a few milliseconds; the client calls it in a thread.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cri.runtime import messages
from cri.runtime.devices import device_nodes, device_rules
from cri.runtime.errors import StartFailed
from cri.runtime.spec import ContainerSpec
from cri.runtime.state import StateFolder
from host.cgroups import Cgroups, Resources
from host.errors import HostError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A spec that has been found good, and what becomes of it."""

    sandbox_id: str
    id: str
    cgroup_path: str
    resources: Resources
    """With the devices that the container may use."""
    message: dict[str, Any]
    """The container for `Container`, as `messages.container` writes it."""


def plan(spec: ContainerSpec, state: StateFolder, cgroups: Cgroups, *, held: int) -> Placement:
    """Check the spec and say where its things will be.

    Args:
        held: mask of the capabilities that this process may hand on.

    Raises:
        InputError, HostError: a field of the spec is wrong, or a device is missing.
    """
    cgroups.check(spec.resources)
    sandbox = state.read(state.sandbox(spec.sandbox_id), "sandbox")
    places = _places(spec, state, cgroups, host_ipc=sandbox.get("host_ipc", False), held=held)
    return Placement(
        sandbox_id=spec.sandbox_id,
        id=spec.id,
        cgroup_path=spec.cgroup_path,
        resources=replace(spec.resources, devices=device_rules(spec, places.devices)),
        message=messages.container(spec, places, share_pid=sandbox.get("share_pid", False)),
    )


def prepare(place: Placement, state: StateFolder, cgroups: Cgroups) -> None:
    """Write the record of what is to be undone, make the cgroup.

    Raises:
        Exists: the sandbox has a container of this id.
        StartFailed: the cgroup was refused; nothing is left.
    """
    state.make_container(place.sandbox_id, place.id, {"cgroup": place.cgroup_path})
    if place.cgroup_path:
        try:
            cgroups.create(place.cgroup_path, place.resources)
        except HostError as exc:
            state.remove_container(place.sandbox_id, place.id)
            raise StartFailed(exc.errno or errno.EIO, f"cgroup: {exc}", step="cgroup") from exc


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
