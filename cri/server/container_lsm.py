"""AppArmor profile and SELinux labels of a container: what is asked for against what the kernel has.

An AppArmor profile that this kernel cannot enforce is an error, as in kubelet. A kernel with AppArmor
confines every unprivileged container of which nothing is said, as containerd does.
SELinux labels are set where a pod asks for them; categories (MCS) are not made up here, `level` names them.
A kernel without SELinux has no policy that could tell one label from another: options of good form are then
without effect, as with every runtime (pods name a level and run on nodes of both kinds; Kubernetes'
conformance tests do), and the log says so.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from cri.server.container_seccomp import profile_of
from cri.server.errors import unimplemented
from host import helpers
from host.errors import InputError
from host.lsm import SecurityModules
from proto.cri import runtime_pb2 as pb

log = logging.getLogger(__name__)

DEFAULT_PROFILE = "nodelet-default"
_LEVEL = re.compile(r"s\d{1,2}(-s\d{1,2})?(:c\d{1,4}(\.c\d{1,4})?(,c\d{1,4}(\.c\d{1,4})?)*)?")
_WORD = re.compile(r"[A-Za-z0-9_]{1,128}")
_PROFILE_TEXT = """\
{head}
profile {name} flags=(attach_disconnected,mediate_deleted) {{
  {base}
  capability,
  file,
  network,
  umount,
  signal (receive) peer=unconfined,
  signal (send, receive) peer={name},
  ptrace (trace, tracedby, read, readby) peer={name},

  # What is the node's own is read-only, whatever is mounted where.
  deny mount,
  deny @{{PROC}}/* w,
  deny @{{PROC}}/sys/** wklx,
  deny @{{PROC}}/{{kcore,sysrq-trigger}} rwklx,
  deny /sys/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """How a container is confined; empty where it is not."""

    apparmor: str = ""
    """Name of a profile that is loaded, or DEFAULT_PROFILE, which is to be loaded."""
    selinux: str = ""
    """Label of its processes."""
    mount: str = ""
    """Label of its files."""


def labels_of(
    security: pb.LinuxContainerSecurityContext, pod: pb.LinuxSandboxSecurityContext, modules: SecurityModules
) -> Labels:
    """The labels of a container.

    Args:
        security: its security context.
        pod: its sandbox's, which names SELinux options for containers that have none.
        modules: what the kernel has.

    Raises:
        InputError: an option of no use, or a profile that is not loaded.
        Unsupported: an AppArmor profile, where the kernel has no AppArmor.
    """
    own = security.HasField("selinux_options") and security.selinux_options.ByteSize()
    process, mount = _selinux(security.selinux_options if own else pod.selinux_options, modules)
    if security.privileged:
        process = ""
    return Labels(apparmor=_apparmor(security, modules), selinux=process, mount=mount)


def _apparmor(security: pb.LinuxContainerSecurityContext, modules: SecurityModules) -> str:
    profile = profile_of(security, "apparmor", security.apparmor_profile)
    kinds = pb.SecurityProfile
    if profile is None:
        return DEFAULT_PROFILE if modules.apparmor and not security.privileged else ""
    if profile.profile_type == kinds.Unconfined:
        return ""
    if profile.profile_type not in (kinds.RuntimeDefault, kinds.Localhost):
        raise InputError(f"apparmor profile type {profile.profile_type} is not known")
    name = profile.localhost_ref.removeprefix("localhost/")
    if profile.profile_type == kinds.Localhost and not name:
        raise InputError("apparmor profile Localhost needs localhost_ref")
    if not modules.apparmor:
        raise unimplemented(f"AppArmor profile {name[:200] or 'RuntimeDefault'}: the kernel has no AppArmor")
    if profile.profile_type == kinds.RuntimeDefault:
        return "" if security.privileged else DEFAULT_PROFILE
    if name not in modules.profiles:
        raise InputError(f"AppArmor profile {name[:200]!r} is not loaded on this node: use apparmor_parser")
    return name


def _selinux(options: pb.SELinuxOption, modules: SecurityModules) -> tuple[str, str]:
    """(label of the processes, label of the files); the defaults are those of container-selinux."""
    if not options.ByteSize():
        return "", ""
    for field in ("user", "role", "type"):
        if (word := getattr(options, field)) and not _WORD.fullmatch(word):
            raise InputError(f"selinux_options.{field} {word[:80]!r} is not a name of a policy")
    level = options.level or "s0"
    if not _LEVEL.fullmatch(level):
        raise InputError(f"selinux_options.level {level[:80]!r} is not of the form s0:c1,c2")
    if not modules.selinux:
        log.info("selinux_options %s without effect: the kernel has no SELinux", level)
        return "", ""
    who = options.user or "system_u"
    process = f"{who}:{options.role or 'system_r'}:{options.type or 'container_t'}:{level}"
    return process, f"{who}:object_r:container_file_t:{level}"


def profile_text(etc: Path = Path("/etc/apparmor.d")) -> str:
    """The default profile in apparmor.d(5)'s language.

    Args:
        etc: where the distribution has its abstractions; what is not there is not included.
    """
    tunables, base = etc / "tunables/global", etc / "abstractions/base"
    return _PROFILE_TEXT.format(
        name=DEFAULT_PROFILE,
        head="#include <tunables/global>" if tunables.exists() else "@{PROC}=/proc/",
        base="#include <abstractions/base>" if base.exists() else "",
    )


async def load_default_profile(labels: Labels, modules: SecurityModules) -> None:
    """Give the kernel the default profile, where a container needs it and it is not there.

    Raises:
        NotFound: there is no apparmor_parser.
        ProcessFailed: it refused the profile.
    """
    if labels.apparmor == DEFAULT_PROFILE and DEFAULT_PROFILE not in modules.profiles:
        await helpers.run_async(["apparmor_parser", "-Kr"], input=profile_text().encode())
