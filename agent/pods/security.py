"""Security contexts of pods and containers in CRI's terms. Pure; part of `translate`.

A container's own field wins over the pod's. What cannot be enforced is refused by name, never ignored.

Source: pkg/securitycontext/util.go and pkg/kubelet/kuberuntime/security_context.go (v1.37); masked and
read-only paths as in the OCI default of containerd and kubelet.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.api.structs import (
    Container,
    Pod,
    PodSecurityContext,
    SecurityContext,
    SecurityProfile,
    SELinuxOptions,
)
from agent.pods import spec
from agent.pods.convert import ImageFact
from agent.pods.settings import PodSettings
from proto.cri import runtime_pb2 as pb

MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
SAFE_SYSCTLS = (
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
)
_MAX_ID = (1 << 31) - 1


class SpecError(Exception):
    """The spec asks for something that is not valid or that this node does not do; the text names it."""


@contextmanager
def naming(field: str) -> Iterator[None]:
    """A value that CRI's messages cannot hold becomes a SpecError that names this field of the spec.

    The API server refuses such numbers; a manifest of a file has been seen by none.
    """
    try:
        yield
    except ValueError as exc:
        raise SpecError(f"{field}: {exc}") from exc


def sandbox_security(pod: Pod, users: pb.UserNamespace | None = None) -> pb.LinuxSandboxSecurityContext:
    """The sandbox's own context: its infrastructure process gets the least."""
    asked = pod.spec.security_context
    out = pb.LinuxSandboxSecurityContext(
        namespace_options=namespaces(pod, users=users),
        privileged=any(
            c.security_context and c.security_context.privileged for c in spec.every_container(pod)
        ),
        seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
        supplemental_groups=_groups(asked),
        supplemental_groups_policy=_groups_policy(asked),
        selinux_options=_selinux(asked.se_linux_options),
    )
    if asked.run_as_user is not None:
        out.run_as_user.value = asked.run_as_user
    if asked.run_as_group is not None:
        out.run_as_group.value = asked.run_as_group
    return out


def namespaces(pod: Pod, *, target_id: str = "", users: pb.UserNamespace | None = None) -> pb.NamespaceOption:
    """Which namespaces the pod shares with the node, and its containers with each other."""
    if pod.spec.host_pid:
        pid = pb.NODE
    elif pod.spec.share_process_namespace:
        pid = pb.POD
    else:
        pid = pb.CONTAINER
    options = pb.NamespaceOption(
        network=pb.NODE if pod.spec.host_network else pb.POD,
        pid=pid,
        ipc=pb.NODE if pod.spec.host_ipc else pb.POD,
        userns_options=users,
    )
    if target_id:
        options.pid = pb.TARGET
        options.target_id = target_id
    return options


def container_security(
    pod: Pod, container: Container, *, image: ImageFact, settings: PodSettings
) -> pb.LinuxContainerSecurityContext:
    """One container's context; the image's user counts where the spec names none. Raises SpecError."""
    own = container.security_context or SecurityContext()
    shared = pod.spec.security_context
    user = _first(own.run_as_user, shared.run_as_user)
    group = _first(own.run_as_group, shared.run_as_group)
    _check_non_root(pod, container, user=user, image=image)
    unmasked = own.proc_mount == "Unmasked"
    out = pb.LinuxContainerSecurityContext(
        privileged=bool(own.privileged),
        readonly_rootfs=bool(own.read_only_root_filesystem),
        no_new_privs=own.allow_privilege_escalation is False,
        supplemental_groups=_groups(shared),
        supplemental_groups_policy=_groups_policy(shared),
        selinux_options=_selinux(own.se_linux_options or shared.se_linux_options),
        seccomp=_seccomp(own.seccomp_profile or shared.seccomp_profile, settings),
        apparmor=_apparmor(own.app_armor_profile or shared.app_armor_profile),
        masked_paths=() if unmasked else MASKED_PATHS,
        readonly_paths=() if unmasked else READONLY_PATHS,
    )
    if own.capabilities is not None:
        out.capabilities.add_capabilities.extend(own.capabilities.add)
        out.capabilities.drop_capabilities.extend(own.capabilities.drop)
    if user is not None:
        out.run_as_user.value = user
    elif image.uid is not None:
        out.run_as_user.value = image.uid
    else:
        out.run_as_username = image.username
    if group is not None:
        if not out.HasField("run_as_user") and not out.run_as_username:
            out.run_as_user.value = 0  # CRI: a group is only valid with a user
        out.run_as_group.value = group
    return out


def dotted(name: str) -> str:
    """A sysctl's name with dots between its words, as the runtime takes it; kernel/msgmax is a name as well.

    As with sysctl(8) the first separator decides: after a slash, a dot is part of a word and becomes a slash.
    """
    first = next((letter for letter in name if letter in "./"), ".")
    return name if first == "." else name.translate({ord("/"): ".", ord("."): "/"})


def check_sysctls(pod: Pod, settings: PodSettings) -> str:
    """Why the pod's sysctls are forbidden, empty when they are not."""
    for sysctl in pod.spec.security_context.sysctls:
        name = dotted(sysctl.name)
        allowed = any(
            fnmatch.fnmatchcase(name, pattern) for pattern in (*SAFE_SYSCTLS, *settings.unsafe_sysctls)
        )
        if not allowed:
            return f'forbidden sysctl: "{sysctl.name}" not allowlisted'
        if pod.spec.host_network and name.startswith("net."):
            return f'forbidden sysctl: "{sysctl.name}" not allowed with host net enabled'
        if pod.spec.host_ipc and name.startswith(("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.")):
            return f'forbidden sysctl: "{sysctl.name}" not allowed with host ipc enabled'
    return ""


def _check_non_root(pod: Pod, container: Container, *, user: int | None, image: ImageFact) -> None:
    own = container.security_context
    wanted = _first(own.run_as_non_root if own else None, pod.spec.security_context.run_as_non_root)
    if not wanted:
        return
    where = f'(pod: "{spec.full_name(pod)}", container: {container.name})'
    if user is not None:
        if user == 0:
            raise SpecError(f"container's runAsUser breaks non-root policy {where}")
        return
    if image.uid is None and image.username:
        raise SpecError(
            f"container has runAsNonRoot and image has non-numeric user ({image.username}), "
            f"cannot verify user is non-root {where}"
        )
    if not image.uid:
        raise SpecError(f"container has runAsNonRoot and image will run as root {where}")
    if image.uid > _MAX_ID:
        raise SpecError(f"container has runAsNonRoot and image has an invalid user id ({image.uid}) {where}")


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _groups(asked: PodSecurityContext) -> list[int]:
    own = [] if asked.fs_group is None else [asked.fs_group]
    return [*own, *asked.supplemental_groups]


def _groups_policy(asked: PodSecurityContext) -> Any:
    policy = asked.supplemental_groups_policy or "Merge"
    if policy not in pb.SupplementalGroupsPolicy.keys():  # noqa: SIM118 - an enum wrapper, not a dict
        raise SpecError(f"unsupported supplementalGroupsPolicy: {policy}")
    return pb.SupplementalGroupsPolicy.Value(policy)


def _selinux(asked: SELinuxOptions | None) -> pb.SELinuxOption | None:
    if asked is None:
        return None
    return pb.SELinuxOption(user=asked.user, role=asked.role, type=asked.type, level=asked.level)


def _seccomp(asked: SecurityProfile | None, settings: PodSettings) -> pb.SecurityProfile:
    if asked is None:
        kind = (
            pb.SecurityProfile.RuntimeDefault if settings.seccomp_default else pb.SecurityProfile.Unconfined
        )
        return pb.SecurityProfile(profile_type=kind)
    if asked.type == "Localhost":
        name = asked.localhost_profile or ""
        if not name or name.startswith("/") or ".." in Path(name).parts:
            raise SpecError("seccompProfile.localhostProfile must be a relative path without '..'")
        path = str(settings.root / "seccomp" / name)
        return pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=path)
    return pb.SecurityProfile(profile_type=_profile_type(asked.type))


def _apparmor(asked: SecurityProfile | None) -> pb.SecurityProfile | None:
    if asked is None:
        return None
    if asked.type == "Localhost" and not asked.localhost_profile:
        raise SpecError("missing localhost apparmor profile name")
    return pb.SecurityProfile(
        profile_type=_profile_type(asked.type), localhost_ref=asked.localhost_profile or ""
    )


def _profile_type(name: str) -> Any:
    if name not in ("RuntimeDefault", "Unconfined", "Localhost"):
        raise SpecError(f"unknown profile type: {name!r}")
    return pb.SecurityProfile.ProfileType.Value(name)
