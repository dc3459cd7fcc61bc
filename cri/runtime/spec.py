"""What the runtime is asked for, and the facts it answers with: plain frozen data, no behaviour.

Paths are absolute paths on the host unless they say "in the container". Times are nanoseconds since
1970-01-01 UTC, 0 where the thing has not happened. Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from host.cgroups import Resources

Propagation = Literal["private", "slave", "shared"]
ContainerState = Literal["created", "running", "exited"]


@dataclass(frozen=True, kw_only=True)
class IdRange:
    """Consecutive user or group ids that are the same ones under other numbers."""

    inside: int
    """First id as the container sees it, or as it stands on disk for an ID-mapped mount."""
    outside: int
    """First id as the host sees it."""
    length: int


@dataclass(frozen=True, kw_only=True)
class IdMaps:
    """Maps of a user namespace or of an ID-mapped mount."""

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]


@dataclass(frozen=True, kw_only=True)
class SandboxSpec:
    """A pod's shared surroundings: its namespaces, host name, shared memory and sysctls."""

    id: str
    """Hexadecimal id; also the name of the state folder."""
    hostname: str = ""
    """Host name inside the pod's UTS namespace; not used with `host_uts`."""
    host_network: bool = False
    """Stay in the node's network namespace; nothing is bound at `netns_path` then."""
    host_uts: bool = False
    """Stay in the node's UTS namespace (CRI asks for it with the host network)."""
    host_ipc: bool = False
    """Stay in the node's IPC namespace, with the node's /dev/shm."""
    share_pid: bool = False
    """One PID namespace for all containers, with a reaping init of ours as its process 1."""
    netns_path: Path | None = None
    """Where the new network namespace is bound, for instance /run/netns/cni-<id>."""
    cgroup_path: str = ""
    """Cgroup of the reaping init (only used with `share_pid`), relative to every hierarchy."""
    shm_size: int = 64 << 20
    """Size of the pod's /dev/shm."""
    user_namespace: IdMaps | None = None
    """Maps of the user namespace that owns the pod's namespaces and that its containers run in (KEP-127);
    not with a namespace of the node. None: the node's."""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    """Namespaced sysctls by dotted name; others are refused with InputError."""


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A bind mount of a host file or folder into the container."""

    source: Path
    target: str
    """Absolute path in the container; made where missing, never following links out of the root."""
    readonly: bool = False
    recursive_readonly: bool = False
    """With `readonly`: the mounts below the source become read-only too (KEP-3857)."""
    propagation: Propagation = "private"
    nosuid: bool = False
    nodev: bool = False
    noexec: bool = False
    idmaps: IdMaps | None = None
    """Show the files with these maps' ids: who is 0 on disk is `outside` to the host, and so 0 in a container
    whose user namespace has the same maps."""


@dataclass(frozen=True, kw_only=True)
class Tmpfs:
    """A fresh tmpfs in the container, in addition to those it always has."""

    target: str
    size: int = 0
    """0: the kernel's default (half of memory)."""
    mode: int = 0o1777


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device node of the host made available in the container."""

    source: Path
    target: str
    access: str = "rwm"
    """Any of r, w, m, as in the devices cgroup."""


@dataclass(frozen=True, kw_only=True)
class User:
    """Who the process runs as. `name` is resolved in the image's own /etc/passwd and /etc/group."""

    name: str = ""
    """The image's USER form: user, uid, user:group, uid:gid; used when `uid` is None. Empty: root."""
    uid: int | None = None
    """Overrides `name`'s user (runAsUser)."""
    gid: int | None = None
    """Overrides the primary group (runAsGroup)."""
    supplementary: tuple[int, ...] = ()
    """Groups added (supplementalGroups, fsGroup)."""
    merge_groups: bool = True
    """Also the groups the image's /etc/group lists for the user (supplementalGroupsPolicy Merge)."""
    require_nonroot: bool = False
    """Refuse to start when the resolved user is 0 (runAsNonRoot, checked on the resolved identity)."""


@dataclass(frozen=True, kw_only=True)
class Rlimit:
    """One resource limit by its POSIX name, for instance RLIMIT_NOFILE."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """One container: what to run, on which root, as whom, within which limits."""

    id: str
    sandbox_id: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    cwd: str = "/"
    """Working directory in the container; made where missing."""
    user: User = field(default_factory=User)

    lower_dirs: tuple[Path, ...] = ()
    """Overlay lower directories, top first (`ImageStore.layers`)."""
    upper_dir: Path | None = None
    """Writable layer; None with exactly one lower directory: that directory itself is the root (tests)."""
    work_dir: Path | None = None
    readonly_rootfs: bool = False
    mounts: tuple[Mount, ...] = ()
    """In order; /proc, /dev, /dev/shm, /dev/pts, /dev/mqueue, /sys, /sys/fs/cgroup are added before them."""
    tmpfs: tuple[Tmpfs, ...] = ()
    devices: tuple[Device, ...] = ()
    all_devices: bool = False
    """Privileged: every device node of the host's /dev."""
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    writable_sys: bool = False
    """Privileged: /sys and /sys/fs/cgroup read-write."""

    capabilities: tuple[str, ...] = ()
    """Names with or without CAP_; the bounding, permitted and effective set (`security.capabilities`)."""
    ambient_capabilities: tuple[str, ...] = ()
    no_new_privileges: bool = False
    seccomp: bytes = b""
    """Classic BPF program (`seccomp.compile_default`, `seccomp.compile_profile`), or with `oci_runtime` a
    profile (the same functions of `oci.seccomp`); empty: unconfined."""
    apparmor_profile: str = ""
    """Name of a loaded AppArmor profile; empty: none is set."""
    selinux_label: str = ""
    """SELinux context of its processes, user:role:type:level; empty: none is set."""
    mount_label: str = ""
    """SELinux context of its root, /dev and tmpfs."""
    rlimits: tuple[Rlimit, ...] = ()
    oom_score_adj: int = 0

    host_pid: bool = False
    own_pid: bool = False
    """A PID namespace of its own even where the pod has one for all (CRI NamespaceMode CONTAINER)."""
    target_container: str = ""
    """Join this container's PID namespace (CRI NamespaceMode TARGET); empty: own, or the pod's."""

    oci_runtime: tuple[str, ...] = ()
    """Program and global options of an external OCI runtime; empty: our own."""

    cgroup_path: str = ""
    """Relative to every hierarchy's mount, for instance /kubepods/besteffort/pod<uid>/<container id>."""
    resources: Resources = field(default_factory=Resources)

    log_path: Path | None = None
    """CRI log file; its folder must exist. None: output is discarded."""
    tty: bool = False
    stdin: bool = False
    """Keep a pipe (or the terminal) open for attach; else standard input is /dev/null."""
    stdin_once: bool = False


@dataclass(frozen=True, kw_only=True)
class ExecSpec:
    """A further process in a running container, with its user, limits and environment."""

    argv: tuple[str, ...]
    tty: bool = False
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    """Not used with `tty`: both streams come out of the terminal."""


@dataclass(frozen=True, kw_only=True)
class ContainerExit:
    """How a container's first process ended; on disk before anybody is told."""

    code: int
    """Exit status, 128 + signal when killed, 128 when it could not be started."""
    signal: int = 0
    finished_at: int
    oom_killed: bool = False
    error: str = ""
    """Why it could not be started, for instance: exec "foo": no such file or directory."""


@dataclass(frozen=True, kw_only=True)
class ContainerFacts:
    """What is known of one container, as its supervisor or its state folder has it."""

    id: str
    pid: int = 0
    """Process id on the host while it lives, else 0."""
    created_at: int = 0
    started_at: int = 0
    exit: ContainerExit | None = None
    dropped_log_bytes: int = 0
    """Output that could not be written to the log (disk full)."""

    @property
    def state(self) -> ContainerState:
        """Derived from the facts, never stored, so that it cannot disagree with them."""
        if self.exit is not None:
            return "exited"
        return "running" if self.started_at else "created"


@dataclass(frozen=True, kw_only=True)
class SandboxFacts:
    """What is known of one sandbox."""

    id: str
    alive: bool
    """Whether its supervisor lives and therefore its namespaces and containers do."""
    pid: int = 0
    """The supervisor's process id: /proc/<pid>/ns/{net,ipc,uts} are the pod's."""
    netns_path: Path | None = None
    created_at: int = 0
    containers: tuple[ContainerFacts, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a sandbox without being the answer to a request."""

    kind: Literal["exited", "oom", "sandbox-lost"]
    sandbox_id: str
    container_id: str = ""
    exit: ContainerExit | None = None
    """Set with `exited`."""


@dataclass(frozen=True, kw_only=True)
class ExecResult:
    """What a synchronous exec printed and how it ended."""

    code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False
    """Output beyond the limit was read and thrown away."""
