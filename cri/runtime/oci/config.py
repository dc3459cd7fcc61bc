"""A container as the `config.json` of the OCI runtime specification 1.2. Pure: no file is looked at here.

What the supervisor knows only when the container starts (the user's numbers, the processes that hold the
namespaces) it puts in itself, between pieces of text: neither it nor its children can afford a JSON writer.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cri.runtime import messages, wire
from cri.runtime.messages import DeviceNode, Places
from cri.runtime.security import CAPABILITIES, capability_mask
from cri.runtime.spec import ContainerSpec, ExecSpec, Mount, Propagation, Rlimit, Tmpfs
from host.cgroups import DeviceRule, Resources
from host.errors import InputError

VERSION = "1.0.2"
"""The oldest that has every field used here; a runtime refuses a version newer than its own."""
_INFINITY = (1 << 64) - 1
_PROPAGATION: Mapping[Propagation, str] = {"private": "rprivate", "slave": "rslave", "shared": "rshared"}
_KERNEL_MOUNTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("/proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
)


def message(
    spec: ContainerSpec,
    places: Places,
    resources: Resources,
    *,
    pid_mode: str,
    ceilings: Mapping[str, int],
    hybrid: Path | None,
) -> dict[str, Any]:
    """What an external runtime's container has in place of our own's words in `messages.container`.

    Args:
        resources: the cgroup's limits, devices included.
        pid_mode: as in `messages.container`.
        ceilings: hard limits that cannot be raised, by the name of the resource limit.
        hybrid: where cgroup2 is mounted, if it is beside v1.

    Returns:
        `oci` for `oci.container`, `process` for `oci.bundle`.

    Raises:
        InputError: a word that is not UTF-8.
    """
    config = render(spec, places, resources, ceilings=ceilings)
    try:
        text = json.dumps(config, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as exc:
        words = "an argument, variable or path is not UTF-8, which an OCI runtime cannot be told"
        raise InputError(words) from exc
    # The first "user" and the last "namespaces" are ours, whatever the words in between.
    before, _, rest = text.partition(b'"user":null')
    between, _, after = rest.rpartition(b'"namespaces":null')
    bundle = places.mountpoint.parent
    process = {
        "rootfs": messages.rootfs(spec, replace(places, cgroup_dirs=(), devices=())),
        "user": messages.user(spec.user),
        "cwd": os.fsencode(spec.cwd or "/"),
        "oom_score_adj": max(-1000, min(spec.oom_score_adj, 1000)),
        "config": [before + b'"user":', between + b'"namespaces":', after],
        "namespaces": namespaces(pid_mode, own_cgroup=not spec.writable_sys),
        "hidden": messages.path(hybrid),
    }
    oci = {
        "runtime": [os.fsencode(word) for word in spec.oci_runtime],
        "bundle": os.fsencode(bundle),
        "root": os.fsencode(bundle / "oci"),
        "birthplace": messages.path(places.birthplace if hybrid else None),
    }
    return {"oci": oci, "process": wire.encode(process)}


def namespaces(pid_mode: str, *, own_cgroup: bool = True) -> bytes:
    """`linux.namespaces`, with %(pod)d and %(process)d for the processes whose namespaces are joined.

    Network, IPC and UTS are the supervisor's, which are the node's where the pod asked for that. A privileged
    container has no cgroup namespace, as with our own runtime.
    """
    found = [{"type": "mount"}, *([{"type": "cgroup"}] if own_cgroup else [])]
    pairs = (("network", "net"), ("ipc", "ipc"), ("uts", "uts"))
    found += [{"type": kind, "path": f"/proc/%(pod)d/ns/{file}"} for kind, file in pairs]
    if pid_mode == "container":
        found.append({"type": "pid"})
    elif pid_mode != "host":
        found.append({"type": "pid", "path": "/proc/%(process)d/ns/pid"})
    return json.dumps(found, separators=(",", ":")).encode()


def render(
    spec: ContainerSpec, places: Places, resources: Resources, *, ceilings: Mapping[str, int]
) -> dict[str, Any]:
    """The whole configuration, with null for `process.user` and `linux.namespaces`."""
    return {
        "ociVersion": VERSION,
        "process": _process(spec, places, ceilings),
        "root": {"path": os.fspath(places.mountpoint), "readonly": spec.readonly_rootfs},
        "mounts": _mounts(spec, places),
        "linux": {
            "cgroupsPath": spec.cgroup_path,
            "resources": _resources(resources, v2=places.cgroup_v2),
            "devices": [_device(node) for node in places.devices],
            "maskedPaths": list(spec.masked_paths),
            "readonlyPaths": list(spec.readonly_paths),
            "rootfsPropagation": _root_propagation(spec.mounts),
            **_given({"mountLabel": spec.mount_label}),
            **({"seccomp": json.loads(spec.seccomp)} if spec.seccomp else {}),
            **({"mountLabel": spec.mount_label} if spec.mount_label else {}),
            "namespaces": None,
        },
    }


def _process(spec: ContainerSpec, places: Places, ceilings: Mapping[str, int]) -> dict[str, Any]:
    """oom_score_adj is not in it: the runtime is started with it, so that lowering it may fail."""
    kept = capability_mask(spec.capabilities) & places.held_capabilities
    ambient = _capability_names(capability_mask(spec.ambient_capabilities) & kept)
    names = _capability_names(kept)
    return {
        "user": None,
        "terminal": spec.tty,
        "args": list(spec.argv),
        "env": [f"{name}={value}" for name, value in spec.env],
        "cwd": spec.cwd or "/",
        "capabilities": {
            "bounding": names,
            "effective": names,
            "permitted": names,
            "inheritable": ambient,
            "ambient": ambient,
        },
        "rlimits": [_rlimit(limit, ceilings) for limit in spec.rlimits],
        "noNewPrivileges": spec.no_new_privileges,
        **_given({"apparmorProfile": spec.apparmor_profile, "selinuxLabel": spec.selinux_label}),
        **({"selinuxLabel": spec.selinux_label} if spec.selinux_label else {}),
    }


def _capability_names(mask: int) -> list[str]:
    return [f"CAP_{name}" for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1]


def _rlimit(limit: Rlimit, ceilings: Mapping[str, int]) -> dict[str, Any]:
    name = limit.name if limit.name.startswith("RLIMIT_") else f"RLIMIT_{limit.name}"
    ceiling = ceilings.get(name, _INFINITY)
    hard = min(_INFINITY if limit.hard < 0 else limit.hard, ceiling)
    return {"type": name, "hard": hard, "soft": min(_INFINITY if limit.soft < 0 else limit.soft, hard)}


def _mounts(spec: ContainerSpec, places: Places) -> list[dict[str, Any]]:
    found = [
        {"destination": target, "type": kind, "source": kind, "options": list(options)}
        for target, kind, options in _KERNEL_MOUNTS
    ]
    sys = ["nosuid", "noexec", "nodev", *(() if spec.writable_sys else ("ro",))]
    found.append({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": sys})
    found.append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": sys})
    held = os.path.join(places.mountpoint.parent, "mounts")
    if places.shm is not None:
        options = ["rbind", "rprivate", "nosuid", "noexec", "nodev"]
        found.append(
            {"destination": "/dev/shm", "type": "bind", "source": f"{held}/shm", "options": options}  # noqa: S108
        )
    found += [_tmpfs(mount) for mount in spec.tmpfs]
    mounts = sorted(spec.mounts, key=lambda mount: mount.target.rstrip("/").count("/"))
    found += [_bind(f"{held}/{number}", mount) for number, mount in enumerate(mounts)]
    return found


def _tmpfs(mount: Tmpfs) -> dict[str, Any]:
    options = ["nosuid", "nodev", f"mode={mount.mode:o}", *((f"size={mount.size}",) if mount.size else ())]
    return {"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": options}


def _bind(source: str, mount: Mount) -> dict[str, Any]:
    """`ro` alone also where all below is read-only: `bundle` has done that to the source's whole tree."""
    flags = (
        ("ro", mount.readonly),
        ("nosuid", mount.nosuid),
        ("nodev", mount.nodev),
        ("noexec", mount.noexec),
    )
    options = ["rbind", _PROPAGATION[mount.propagation], *(name for name, wanted in flags if wanted)]
    return {"destination": mount.target, "type": "bind", "source": source, "options": options}


def _root_propagation(mounts: tuple[Mount, ...]) -> str:
    """What the runtime does to all its mounts first must not cut what a volume's own propagation needs."""
    asked = {mount.propagation for mount in mounts}
    return "rshared" if "shared" in asked else "rslave" if "slave" in asked else "rprivate"


def _device(node: DeviceNode) -> dict[str, Any]:
    return {
        "path": node.target,
        "type": "b" if stat.S_ISBLK(node.mode) else "c",
        "major": os.major(node.number),
        "minor": os.minor(node.number),
        "fileMode": stat.S_IMODE(node.mode),
        "uid": node.uid,
        "gid": node.gid,
    }


def _resources(wanted: Resources, *, v2: bool) -> dict[str, Any]:
    """The limits that the cgroup has already: a runtime makes nothing stricter that it is not told."""
    memory = {"limit": wanted.memory_limit, "swap": wanted.memory_swap_limit}
    cpu = {
        "shares": wanted.cpu_shares,
        "quota": wanted.cpu_quota_us,
        "period": wanted.cpu_period_us,
        "cpus": wanted.cpuset_cpus,
        "mems": wanted.cpuset_mems,
    }
    pages = [{"pageSize": size, "limit": limit} for size, limit in wanted.hugepage_limits.items()]
    found: dict[str, Any] = {
        "devices": [
            {"allow": False, "access": "rwm"},
            *(_device_rule(rule) for rule in wanted.devices or ()),
        ],
        "memory": _given(memory),
        "cpu": _given(cpu),
        "pids": _given({"limit": wanted.pids_limit}),
        "hugepageLimits": pages,
    }
    if v2:
        found["unified"] = dict(wanted.unified)
    return _given(found)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, "", {}, [])}


def _device_rule(rule: DeviceRule) -> dict[str, Any]:
    numbers = {"major": rule.major, "minor": rule.minor}
    return {"allow": rule.allow, "type": rule.kind, "access": rule.access, **_given(numbers)}


def exec_process(config: bytes, spec: ExecSpec) -> bytes:
    """The `process.json` of a further process: the container's own with another command line.

    Args:
        config: the container's `config.json` as it was given to the runtime.

    Raises:
        InputError: a word that is not UTF-8.
    """
    process = json.loads(config)["process"]
    process.update(args=list(spec.argv), terminal=spec.tty)
    try:
        return json.dumps(process, ensure_ascii=False).encode()
    except UnicodeEncodeError as exc:
        raise InputError("a word of the command is not UTF-8, which an OCI runtime cannot be told") from exc
