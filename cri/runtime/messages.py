"""Specs as the messages a supervisor understands, and its answers as facts. Pure: no file is opened here.

Everything the operating system will see (paths, arguments, environment) travels as bytes, so that nothing has
to be encoded after a container's root has been entered.
"""

from __future__ import annotations

import os
import re
import resource
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cri.runtime import idmaps, wire
from cri.runtime.security import capability_mask
from cri.runtime.spec import (
    ContainerExit,
    ContainerFacts,
    ContainerSpec,
    ExecSpec,
    Mount,
    SandboxSpec,
    Tmpfs,
    User,
)
from host.errors import InputError

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_SYSCTL = re.compile(r"[a-z0-9_-]+(\.[A-Za-z0-9_-]+)+")
_SYSCTL_VALUE = re.compile(r"[A-Za-z0-9 \t./,:-]{0,256}")
_IPC_SYSCTLS = re.compile(r"kernel\.(shm.*|msg.*|sem)|fs\.mqueue\..*")
_HOSTNAME_MAX = 64


@dataclass(frozen=True, kw_only=True)
class DeviceNode:
    """A device as it is on the host."""

    target: str
    mode: int
    number: int
    uid: int = 0
    gid: int = 0
    access: str = "rwm"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a container's things are on this host; found by the client, not part of the spec."""

    mountpoint: Path
    """An empty folder to mount the root on."""
    shm: Path | None
    """The pod's shared memory."""
    birthplace: Path | None = None
    """The cgroup2 folder to be born in."""
    tasks_files: tuple[Path, ...] = ()
    procs_file: Path | None = None
    kill_file: Path | None = None
    oom_file: Path | None = None
    cgroup_dirs: tuple[tuple[str, Path], ...] = ()
    cgroup_v2: bool = False
    devices: tuple[DeviceNode, ...] = field(default=())
    held_capabilities: int = -1
    """What this process may hand on; a mask."""
    userns: dict[str, Any] | None = None
    """The pod's user namespace, as `idmaps.pod` writes it."""


def check_id(kind: str, value: str) -> str:
    """The id, if it is one that can name a file.

    Raises:
        InputError: empty, too long, or with characters that ids do not have.
    """
    if not ID.fullmatch(value):
        raise InputError(f"{kind} id {value[:140]!r} is not usable: letters, digits, dot, dash, underscore")
    return value


def sandbox(
    spec: SandboxSpec, *, birthplace: Path | None = None, tasks_files: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """A sandbox for `namespaces.enter`.

    Args:
        birthplace, tasks_files: of the cgroup of the pod's reaping init, as in `Places`.

    Raises:
        InputError: a field is wrong, named.
    """
    check_id("sandbox", spec.id)
    hostname = spec.hostname.encode()
    if len(hostname) > _HOSTNAME_MAX:
        raise InputError(f"hostname {spec.hostname!r} is longer than {_HOSTNAME_MAX} bytes")
    return {
        "id": spec.id,
        "hostname": hostname,
        "host_network": spec.host_network,
        "host_uts": spec.host_uts,
        "host_ipc": spec.host_ipc,
        "share_pid": spec.share_pid,
        "netns_path": path(spec.netns_path),
        "birthplace": path(birthplace),
        "tasks_files": [path(file) for file in tasks_files],
        "shm_size": spec.shm_size,
        "userns": idmaps.pod(spec),
        "sysctls": _sysctls(spec),
    }


def _sysctls(spec: SandboxSpec) -> dict[str, bytes]:
    for name, value in spec.sysctls.items():
        if not _SYSCTL.fullmatch(name) or not _SYSCTL_VALUE.fullmatch(value):
            raise InputError(f"sysctl {name!r}={value!r} is not usable: plain name and value only")
        network = name.startswith("net.")
        if not network and not _IPC_SYSCTLS.fullmatch(name):
            raise InputError(f"sysctl {name!r} is not namespaced: it would change the node")
        if (network and spec.host_network) or (not network and spec.host_ipc):
            raise InputError(f"sysctl {name!r} is refused: the pod uses the node's own namespace")
    return {name: value.encode() for name, value in spec.sysctls.items()}


def container(spec: ContainerSpec, places: Places, *, share_pid: bool = False) -> dict[str, Any]:
    """A container for `container.Container`, and in it a process for `init.run_container`.

    Args:
        share_pid: whether its sandbox has one PID namespace for all.

    Raises:
        InputError: a field is wrong, named.
    """
    check_id("container", spec.id)
    if not spec.argv or not spec.argv[0]:
        raise InputError("container has no command: set args in the image or the pod")
    if not spec.oci_runtime and len(spec.seccomp) % 8:
        raise InputError("seccomp program is not a whole number of instructions")
    mode = (
        "target"
        if spec.target_container
        else "host"
        if spec.host_pid
        else "pod"
        if share_pid and not spec.own_pid
        else "container"
    )
    if places.userns and spec.host_pid:
        raise InputError("container is to be in the node's PID namespace: not in a pod with a user namespace")
    return {
        "id": spec.id,
        "process": wire.encode(_process(spec, places)),
        "oci": None,
        "userns": places.userns,
        "idmaps": idmaps.wanted(spec.mounts, places.userns),
        "pid_mode": mode,
        "target": spec.target_container,
        "birthplace": path(places.birthplace),
        "procs_file": path(places.procs_file),
        "kill_file": path(places.kill_file),
        "oom_file": path(places.oom_file),
        "log_path": path(spec.log_path),
        "tty": spec.tty,
        "stdin": spec.stdin,
        "stdin_once": spec.stdin_once,
    }


def _process(spec: ContainerSpec, places: Places) -> dict[str, Any]:
    """What only the container's own processes read, after their fork: bytes to the supervisor, which would
    hold a hundred small objects of it for nothing."""
    # A user namespace gives every capability, whichever this process has, and none outside of it.
    held = -1 if places.userns else places.held_capabilities
    kept = capability_mask(spec.capabilities) & held
    return {
        "argv": [_text("argument", word) for word in spec.argv],
        "env": [[_text("env name", name), _text(f"env {name}", value)] for name, value in spec.env],
        "cwd": _text("working directory", spec.cwd or "/"),
        "user": user(spec.user),
        "rootfs": rootfs(spec, places),
        "userns": places.userns,
        "privileges": {
            "capabilities": kept,
            "ambient": capability_mask(spec.ambient_capabilities) & kept,
            "no_new_privs": spec.no_new_privileges,
            "seccomp": spec.seccomp,
        },
        "rlimits": [[rlimit(limit.name), _limit(limit.soft), _limit(limit.hard)] for limit in spec.rlimits],
        "labels": _labels(spec),
        "oom_score_adj": max(-1000, min(spec.oom_score_adj, 1000)),
        "tasks_files": [path(file) for file in places.tasks_files],
        "tty": spec.tty,
    }


def _labels(spec: ContainerSpec) -> list[list[bytes]]:
    """(file of procfs, what is written to it) for the security modules; see proc_pid_attr(5)."""
    labels = []
    if spec.apparmor_profile:
        profile = _text("AppArmor profile", spec.apparmor_profile)
        labels.append([b"/proc/thread-self/attr/apparmor/exec", b"exec " + profile])
    if spec.selinux_label:
        labels.append([b"/proc/thread-self/attr/exec", _text("SELinux label", spec.selinux_label)])
    return labels


def user(spec: User) -> dict[str, Any]:
    """A user for `identity.resolve`."""
    return {
        "name": _text("user", spec.name),
        "uid": spec.uid,
        "gid": spec.gid,
        "groups": list(spec.supplementary),
        "merge": spec.merge_groups,
        "nonroot": spec.require_nonroot,
    }


def rootfs(spec: ContainerSpec, places: Places) -> dict[str, Any]:
    """A root for `rootfs.build`. Mounts are ordered by depth, so that none hides another."""
    if not spec.lower_dirs:
        raise InputError("container has no root: lower_dirs is empty")
    mounts = sorted(spec.mounts, key=lambda mount: mount.target.rstrip("/").count("/"))
    maps = idmaps.wanted(spec.mounts, places.userns)
    for mount in mounts:
        if places.userns and mount.propagation == "shared":
            words = "bidirectional propagation does not pass out of the pod's user namespace"
            raise InputError(f"mount {mount.target}: {words}")
    return {
        "lower": [path(folder) for folder in spec.lower_dirs],
        "upper": path(spec.upper_dir),
        "work": path(spec.work_dir),
        "mountpoint": path(places.mountpoint),
        "readonly_rootfs": spec.readonly_rootfs,
        "mounts": [_mount(mount, idmaps.number(mount, maps)) for mount in mounts],
        "tty_group": idmaps.terminal_group(places.userns),
        "tmpfs": [_tmpfs(mount) for mount in spec.tmpfs],
        "devices": [_device(node) for node in places.devices],
        "masked": [_text("masked path", name) for name in spec.masked_paths],
        "readonly": [_text("read-only path", name) for name in spec.readonly_paths],
        "shm": path(places.shm),
        "cgroup_dirs": [[name.encode(), path(folder)] for name, folder in places.cgroup_dirs],
        "cgroup_v2": places.cgroup_v2,
        "writable_sys": spec.writable_sys,
        "label": _text("mount label", spec.mount_label),
    }


def _mount(mount: Mount, idmap: int) -> dict[str, Any]:
    return {
        "source": path(mount.source),
        "target": _target(mount.target),
        "readonly": mount.readonly,
        "recursive_readonly": mount.recursive_readonly,
        "propagation": mount.propagation,
        "nosuid": mount.nosuid,
        "nodev": mount.nodev,
        "noexec": mount.noexec,
        "idmap": idmap,
    }


def _tmpfs(mount: Tmpfs) -> dict[str, Any]:
    return {"target": _target(mount.target), "size": mount.size, "mode": mount.mode}


def _device(node: DeviceNode) -> dict[str, Any]:
    return {
        "target": _target(node.target),
        "mode": node.mode,
        "number": node.number,
        "uid": node.uid,
        "gid": node.gid,
    }


def _target(target: str) -> bytes:
    if not target.strip("/") or ".." in target.split("/"):
        raise InputError(f"mount target {target!r} is not usable: an absolute path without '..'")
    return _text("mount target", target)


def _text(what: str, value: str) -> bytes:
    if "\0" in value:
        raise InputError(f"{what} has a NUL character in it")
    return os.fsencode(value)


def path(value: Path | None) -> bytes:
    """An absolute path as bytes; empty for None.

    Raises:
        InputError: it is relative.
    """
    if value is None:
        return b""
    if not value.is_absolute():
        raise InputError(f"path {value} is not absolute")
    return os.fsencode(value)


def rlimit(name: str) -> int:
    """The number of a resource limit (RLIMIT_NOFILE, or NOFILE).

    Raises:
        InputError: no such limit.
    """
    number = getattr(resource, name if name.startswith("RLIMIT_") else f"RLIMIT_{name}", None)
    if not isinstance(number, int):
        raise InputError(f"rlimit {name!r} is not known: use a name like RLIMIT_NOFILE")
    return number


def _limit(value: int) -> int:
    return -1 if value < 0 or value >= 1 << 63 else value


def exec_request(spec: ExecSpec, number: int) -> dict[str, Any]:
    """A process for `Execution`; `number` is the client's own."""
    if not spec.argv or not spec.argv[0]:
        raise InputError("exec has no command")
    return {
        "exec": number,
        "process": b"",
        "argv": [_text("argument", word) for word in spec.argv],
        "tty": spec.tty,
        "stdin": spec.stdin,
        "stdout": spec.stdout,
        "stderr": spec.stderr,
    }


def signal_number(number: int) -> int:
    """Refuses what is no signal.

    Raises:
        InputError: outside the kernel's range.
    """
    if not 0 < number < signal.NSIG:
        raise InputError(f"signal {number} is not known")
    return number


def container_facts(found: Mapping[str, Any]) -> ContainerFacts:
    """From a supervisor's answer."""
    return ContainerFacts(
        id=found["id"],
        pid=found["pid"],
        created_at=found["created_at"],
        started_at=found["started_at"],
        exit=container_exit(found["exit"]) if found["exit"] else None,
        dropped_log_bytes=found.get("dropped", 0),
    )


def container_exit(found: Mapping[str, Any]) -> ContainerExit:
    """From a supervisor's answer or its record."""
    return ContainerExit(
        code=found["code"],
        signal=found["signal"],
        finished_at=found["finished_at"],
        oom_killed=found["oom"],
        error=found["error"],
    )
