"""Before a container is made: its folder, record and cgroup, and the message that says where they are.

`prepare` blocks for a few milliseconds; the client calls it in a thread.
"""

from __future__ import annotations

import asyncio
import errno
import resource
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cri.runtime import messages
from cri.runtime.devices import device_nodes, device_rules
from cri.runtime.errors import StartFailed
from cri.runtime.link import Link
from cri.runtime.security import capability_mask
from cri.runtime.spec import ContainerSpec, ExecSpec
from cri.runtime.state import StateFolder
from host.cgroups import Cgroups, Resources
from host.cgroups.folders import in_trees
from host.errors import HostError
from host.failpoints import reach


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A spec that has been found good, and what becomes of it."""

    sandbox_id: str
    id: str
    cgroup_path: str
    oci_runtime: tuple[str, ...]
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
    places = _places(spec, state, cgroups, sandbox, held=held)
    resources = replace(spec.resources, devices=device_rules(spec, places.devices))
    message = messages.container(spec, places, share_pid=sandbox.get("share_pid", False))
    if spec.oci_runtime:
        message.update(_oci_message(spec, places, resources, cgroups, pid_mode=message["pid_mode"]))
    return Placement(
        sandbox_id=spec.sandbox_id,
        id=spec.id,
        cgroup_path=spec.cgroup_path,
        oci_runtime=spec.oci_runtime,
        resources=resources,
        message=message,
    )


def prepare(place: Placement, state: StateFolder, cgroups: Cgroups, *, holder: int = 0) -> None:
    """Write the record of what is to be undone, make the cgroup.

    Args:
        holder: a process for `Cgroups.create`.

    Raises:
        Exists: the sandbox has a container of this id.
        StartFailed: the cgroup was refused; nothing is left.
    """
    undo = {"cgroup": place.cgroup_path, "oci": list(place.oci_runtime)}
    folder = state.make_container(place.sandbox_id, place.id, undo)
    if place.oci_runtime:
        (folder / "mounts").mkdir(mode=0o700)
    reach("runtime.container_recorded")
    if place.cgroup_path:
        try:
            cgroups.create(place.cgroup_path, place.resources, holder=holder)
        except HostError as exc:
            state.remove_container(place.sandbox_id, place.id)
            raise StartFailed(exc.errno or errno.EIO, f"cgroup: {exc}", step="cgroup") from exc


async def prepare_in_place(link: Link, place: Placement, state: StateFolder, cgroups: Cgroups) -> None:
    """The same without blocking, with a holder in the cgroup where there is none without.

    Args:
        link: to the pod's supervisor, whose child the holder is; a failure ends it.
    """
    if not cgroups.needs_holder(place.cgroup_path):
        await asyncio.to_thread(prepare, place, state, cgroups)
        return
    holder = (await link.request("hold", container=place.id))["pid"]
    try:
        reach("runtime.container_held")
        await asyncio.to_thread(prepare, place, state, cgroups, holder=holder)
    except BaseException:
        with suppress(HostError):
            await link.request("let-go", container=place.id)
        raise


def _places(
    spec: ContainerSpec, state: StateFolder, cgroups: Cgroups, sandbox: dict[str, Any], *, held: int
) -> messages.Places:
    host_ipc, userns = sandbox.get("host_ipc", False), sandbox.get("userns")
    shm = Path("/dev/shm") if host_ipc else state.sandbox(spec.sandbox_id) / "shm"  # noqa: S108 - the node's own
    folder = state.container(spec.sandbox_id, spec.id)
    path = spec.cgroup_path
    names = [tree.name for tree in cgroups.shown]
    folders = list(in_trees(cgroups.shown, path)) if path else []
    if (
        cgroups.mode == "v2" and spec.writable_sys and not userns
    ):  # privileged: the whole hierarchy, as with containerd
        folders = list(cgroups.trees)
    return messages.Places(
        mountpoint=folder / "rootfs",
        shm=shm,
        birthplace=cgroups.birthplace(path) if path else None,
        tasks_files=tuple(cgroups.tasks_files(path)) if path else (),
        procs_file=cgroups.procs_files(path)[0] if path else None,
        kill_file=cgroups.kill_file(path) if path else None,
        oom_file=cgroups.oom_file(path) if path else None,
        cgroup_dirs=tuple(zip(names, folders, strict=True)) if path else (),
        cgroup_v2=cgroups.mode == "v2",
        devices=device_nodes(spec),
        held_capabilities=held,
        userns=userns,
    )


def _oci_message(
    spec: ContainerSpec, places: messages.Places, resources: Resources, cgroups: Cgroups, *, pid_mode: str
) -> dict[str, Any]:
    from cri.runtime.oci import config

    if "hugetlb" not in cgroups.controllers:  # the kubelet forbids huge pages to every pod; nobody can here
        resources = replace(resources, hugepage_limits={})
    return config.message(
        spec,
        places,
        resources,
        pid_mode=pid_mode,
        ceilings=_ceilings(spec, places.held_capabilities),
        hybrid=cgroups.trees[0] if cgroups.mode == "hybrid" else None,
    )


def _ceilings(spec: ContainerSpec, held: int) -> dict[str, int]:
    """Hard limits of this process, which nobody without CAP_SYS_RESOURCE raises."""
    if held & capability_mask(("SYS_RESOURCE",)):
        return {}
    found = {item.name: resource.getrlimit(messages.rlimit(item.name))[1] for item in spec.rlimits}
    return {name: limit for name, limit in found.items() if limit != resource.RLIM_INFINITY}


def exec_process(spec: ExecSpec, state: StateFolder, sandbox_id: str, container_id: str) -> bytes:
    """For `messages.exec_request`: the process as an external runtime takes it; empty for our own."""
    try:
        config = (state.container(sandbox_id, container_id) / "config.json").read_bytes()
    except FileNotFoundError:
        return b""
    from cri.runtime.oci.config import exec_process

    return exec_process(config, spec)
