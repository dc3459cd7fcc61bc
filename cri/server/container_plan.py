"""What a ContainerConfig and an image ask for, as a ContainerSpec. Pure: no file is looked at here.

The image's configuration is hostile input: it may choose what runs inside the container and nothing else.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cri.images.model import ImageConfig
from cri.runtime.security import CAPABILITIES, capabilities
from cri.runtime.spec import ContainerSpec, Device, IdMaps, Mount, Propagation, User
from cri.server.cdi import ContainerEdits
from cri.server.container_check import check_values
from cri.server.container_lsm import Labels
from cri.server.user_namespaces import mount_maps
from host.cgroups import Resources
from host.errors import InputError
from proto.cri import runtime_pb2 as pb

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROPAGATION: Mapping[int, Propagation] = {
    pb.PROPAGATION_PRIVATE: "private",
    pb.PROPAGATION_HOST_TO_CONTAINER: "slave",
    pb.PROPAGATION_BIDIRECTIONAL: "shared",
}
_MAX_ID = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a container's things are on the host."""

    container_id: str
    sandbox_id: str
    cgroup: str
    upper: Path
    work: Path
    lower: tuple[Path, ...]
    log: Path | None
    resolv_conf: Path
    hostname_file: Path
    hosts_file: Path
    hostname: str
    """Value of $HOSTNAME."""
    volumes: tuple[tuple[Path, str], ...] = ()
    """Anonymous volumes: (folder on the host, path in the container)."""
    oci_runtime: tuple[str, ...] = ()
    """Command of the external runtime that the pod asked for; empty: our own."""
    user_namespace: IdMaps | None = None
    """The pod's."""
    edits: ContainerEdits = field(default_factory=ContainerEdits)
    """What its CDI devices add."""
    images: tuple[Path, ...] = ()
    """Where each image volume of the configuration is mounted on the host, in its order."""


def check_config(config: pb.ContainerConfig, pod: pb.PodSandboxConfig) -> None:
    """Refuse what is missing, wrong, or not supported, by name.

    Args:
        pod: the sandbox's configuration, which must be privileged itself for a privileged container.

    Raises:
        InputError, Unsupported.
    """
    if not config.metadata.name:
        raise InputError("config.metadata.name is empty: a container needs a name")
    if not config.image.image:
        raise InputError("config.image.image is empty: a container needs an image")
    for mount in config.mounts:
        _check_recursive_readonly(mount)
    check_values(config)
    security = config.linux.security_context
    if security.privileged and not pod.linux.security_context.privileged:
        raise InputError("security_context.privileged: the pod sandbox of the container is not privileged")
    if security.namespace_options.pid == pb.TARGET and not security.namespace_options.target_id:
        raise InputError("namespace_options.pid TARGET needs target_id: a container of the same pod")
    if security.HasField("run_as_group") and not (
        security.HasField("run_as_user") or security.run_as_username
    ):
        raise InputError("run_as_group needs run_as_user or run_as_username")


def _check_recursive_readonly(mount: pb.Mount) -> None:
    """KEP-3857: only a read-only mount with private propagation can be read-only all the way down."""
    if not mount.recursive_read_only:
        return
    where = f"mounts: recursive_read_only at {mount.container_path[:80]!r}"
    if not mount.readonly:
        raise InputError(f"{where} needs readonly")
    if mount.propagation != pb.PROPAGATION_PRIVATE:
        raise InputError(f"{where} needs propagation PROPAGATION_PRIVATE")


def argv_of(config: pb.ContainerConfig, image: ImageConfig) -> tuple[str, ...]:
    """The command line: `command` replaces entrypoint and cmd, `args` only cmd (Kubernetes' rule).

    Raises:
        InputError: neither the pod nor the image says what to run.
    """
    if config.command:
        argv = (*config.command, *config.args)
    else:
        argv = (*image.entrypoint, *(config.args or image.cmd))
    if not argv:
        raise InputError(f"no command specified: neither the pod nor image {config.image.image} has one")
    if any("\0" in word for word in argv):
        raise InputError("command holds a NUL character")
    return argv


def env_of(config: pb.ContainerConfig, image: ImageConfig, *, hostname: str) -> tuple[tuple[str, str], ...]:
    """The environment, later words winning: defaults, image, pod.

    Raises:
        InputError: a name that is empty or holds `=` or NUL.
    """
    values = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if config.tty:
        values["TERM"] = "xterm"
    values.update(entry.partition("=")[::2] for entry in image.env if "=" in entry)
    for item in config.envs:
        text = item.value.decode(errors="surrogateescape")
        if not item.key or "=" in item.key or "\0" in item.key or "\0" in text:
            raise InputError(f"environment variable {item.key[:80]!r} has no usable name or value")
        values[item.key] = text
    return tuple(values.items())


def user_of(config: pb.ContainerConfig, image: ImageConfig) -> User:
    """Who the first process is; resolved later, in the image's own passwd file.

    Raises:
        InputError: an id outside 0..2147483647, or a policy that is not known.
    """
    security = config.linux.security_context
    uid = security.run_as_user.value if security.HasField("run_as_user") else None
    gid = security.run_as_group.value if security.HasField("run_as_group") else None
    groups = [("supplemental_groups", number) for number in security.supplemental_groups]
    for name, value in (("run_as_user", uid), ("run_as_group", gid), *groups):
        if value is not None and not 0 <= value <= _MAX_ID:
            raise InputError(f"{name} {value} is not in 0..{_MAX_ID}")
    policy = security.supplemental_groups_policy
    if policy not in (pb.Merge, pb.Strict):
        raise InputError(f"supplemental_groups_policy {policy} is not known: Merge or Strict")
    return User(
        name="" if uid is not None else security.run_as_username or image.user,
        uid=uid,
        gid=gid,
        supplementary=tuple(security.supplemental_groups),
        merge_groups=policy == pb.Merge,
    )


def resources_of(wanted: pb.LinuxContainerResources) -> Resources:
    """cgroup limits; CRI's 0 means not given."""
    return Resources(
        cpu_shares=wanted.cpu_shares or None,
        cpu_quota_us=wanted.cpu_quota or None,
        cpu_period_us=wanted.cpu_period or None,
        cpuset_cpus=wanted.cpuset_cpus or None,
        cpuset_mems=wanted.cpuset_mems or None,
        memory_limit=wanted.memory_limit_in_bytes or None,
        memory_swap_limit=wanted.memory_swap_limit_in_bytes or None,
        hugepage_limits={item.page_size: item.limit for item in wanted.hugepage_limits},
        unified=dict(wanted.unified),
    )


def _target(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InputError(f"mounts: container_path {path[:80]!r} must be absolute")
    return posixpath.normpath(path).replace("//", "/")


def mounts_of(config: pb.ContainerConfig, place: Place) -> tuple[Mount, ...]:
    """Bind mounts in order: the pod's small files, anonymous volumes, then the kubelet's by depth.

    A path the kubelet mounts itself is not mounted by us; a parent folder comes before what is inside it.

    Raises:
        InputError: a relative or empty path, or an image volume that is to be written to.
    """
    wanted = [(item, _target(item.container_path)) for item in config.mounts]
    taken = {target for _, target in wanted}
    readonly = config.linux.security_context.readonly_rootfs
    small = (
        (place.resolv_conf, "/etc/resolv.conf"),
        (place.hostname_file, "/etc/hostname"),
        (place.hosts_file, "/etc/hosts"),
    )
    own = place.user_namespace  # what we make belongs to 0 on disk and is to be root's inside
    mounts = [Mount(source=source, target=target, readonly=readonly, idmaps=own) for source, target in small]
    mounts += [Mount(source=source, target=target, idmaps=own) for source, target in place.volumes]
    mounts = [item for item in mounts if item.target not in taken]
    images = iter(place.images)
    for item, target in wanted:
        maps = mount_maps(item, own)
        if item.image.image:  # mapped when its layers were put together
            _check_image_mount(item, target)
            mounts.append(Mount(source=next(images), target=target, readonly=True))
            continue
        if not item.host_path.startswith("/"):
            raise InputError(f"mounts: host_path {item.host_path[:80]!r} for {target} must be absolute")
        mounts.append(
            Mount(
                source=Path(item.host_path),
                target=target,
                readonly=item.readonly,
                recursive_readonly=item.recursive_read_only,
                propagation=_propagation(item),
                idmaps=maps,
            )
        )
    mounts += place.edits.mounts
    return tuple(sorted(mounts, key=lambda item: item.target.count("/")))


def _propagation(mount: pb.Mount) -> Propagation:
    if mount.propagation not in _PROPAGATION:
        raise InputError(
            f"mounts: propagation {mount.propagation} of {mount.container_path[:80]!r} is not known"
        )
    return _PROPAGATION[mount.propagation]


def _check_image_mount(mount: pb.Mount, target: str) -> None:
    """CRI: an image volume is read-only by definition and has nothing else as its source."""
    if not mount.readonly:
        raise InputError(f"mounts: readonly must be true for the image volume at {target[:80]}")
    if mount.host_path:
        raise InputError(f"mounts: host_path must be empty for the image volume at {target[:80]}")


def volume_targets(config: pb.ContainerConfig, image: ImageConfig) -> tuple[str, ...]:
    """The image's VOLUMEs that get an anonymous volume: those the kubelet mounts nothing at."""
    taken = {_target(item.container_path) for item in config.mounts}
    return tuple(path for path in image.volumes if path not in taken)


def _capabilities(security: pb.LinuxContainerSecurityContext) -> tuple[str, ...]:
    if security.privileged:
        return CAPABILITIES
    asked = security.capabilities
    return capabilities(add=asked.add_capabilities, drop=asked.drop_capabilities)


def container_spec(
    config: pb.ContainerConfig,
    image: ImageConfig,
    place: Place,
    *,
    seccomp: bytes,
    labels: Labels,
    devices: Sequence[Device],
) -> ContainerSpec:
    """The spec of a container.

    Args:
        config: as the kubelet sent it, checked by `check_config`.
        image: the image's configuration.
        place: where its things are.
        seccomp: compiled filter, or empty for unconfined.
        labels: AppArmor's and SELinux's.
        devices: device nodes of the host it may use.

    Raises:
        InputError: a field makes no sense; the message names it.
    """
    security = config.linux.security_context
    options = security.namespace_options
    privileged = security.privileged
    edits, who = place.edits, user_of(config, image)
    ambient = security.capabilities.add_ambient_capabilities
    return ContainerSpec(
        id=place.container_id,
        sandbox_id=place.sandbox_id,
        argv=argv_of(config, image),
        env=tuple({**dict(env_of(config, image, hostname=place.hostname)), **dict(edits.env)}.items()),
        cwd=config.working_dir or image.working_dir or "/",
        user=replace(who, supplementary=(*who.supplementary, *edits.groups)),
        lower_dirs=place.lower,
        upper_dir=place.upper,
        work_dir=place.work,
        readonly_rootfs=security.readonly_rootfs,
        mounts=mounts_of(config, place),
        devices=(*devices, *edits.devices),
        all_devices=privileged,
        masked_paths=() if privileged else tuple(security.masked_paths),
        readonly_paths=() if privileged else tuple(security.readonly_paths),
        writable_sys=privileged,
        capabilities=_capabilities(security),
        ambient_capabilities=tuple(ambient),
        no_new_privileges=security.no_new_privs,
        seccomp=seccomp,
        apparmor_profile=labels.apparmor,
        selinux_label=labels.selinux,
        mount_label=labels.mount,
        oom_score_adj=config.linux.resources.oom_score_adj,
        host_pid=options.pid == pb.NODE,
        own_pid=options.pid == pb.CONTAINER,
        target_container=options.target_id if options.pid == pb.TARGET else "",
        oci_runtime=place.oci_runtime,
        cgroup_path=place.cgroup,
        resources=resources_of(config.linux.resources),
        log_path=place.log,
        tty=config.tty,
        stdin=config.stdin,
        stdin_once=config.stdin_once,
    )
