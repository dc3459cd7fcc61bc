"""Which seccomp filter a container gets. Whatever cannot be understood is refused, never left unconfined
(CVE-2023-2431: an empty Localhost name once meant no filter at all)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from cri.runtime import seccomp
from cri.runtime.oci import seccomp as oci_seccomp
from cri.runtime.security import capabilities
from host.errors import InputError
from host.files import read_input
from proto.cri import runtime_pb2 as pb

_MAX_PROFILE_BYTES = 4 << 20


def seccomp_filter(
    security: pb.LinuxContainerSecurityContext, *, root: Path, external: bool = False
) -> bytes:
    """The filter; empty for unconfined (asked for, or privileged, or nothing said).

    Args:
        security: the container's security context.
        root: the folder Localhost profiles must be in.
        external: as a profile for an OCI runtime, in place of a program for the kernel.

    Raises:
        InputError: an unknown type, a Localhost profile that is missing, unreadable or outside `root`.
    """
    profile = profile_of(security, "seccomp", security.seccomp_profile_path)
    if security.privileged or profile is None or profile.profile_type == pb.SecurityProfile.Unconfined:
        return b""
    kind = profile.profile_type
    asked = security.capabilities
    held = capabilities(add=asked.add_capabilities, drop=asked.drop_capabilities)
    form = oci_seccomp if external else seccomp
    if kind == pb.SecurityProfile.RuntimeDefault:
        return form.compile_default(capabilities=held)
    if kind == pb.SecurityProfile.Localhost:
        return form.compile_profile(read_profile(profile.localhost_ref, root), capabilities=held)
    raise InputError(f"seccomp profile type {kind} is not known")


def profile_of(
    security: pb.LinuxContainerSecurityContext, field: Literal["seccomp", "apparmor"], word: str
) -> pb.SecurityProfile | None:
    """The profile asked for; None where nothing is said.

    Args:
        field: the field that holds it.
        word: the deprecated field of text: runtime/default, unconfined or localhost/<name>; it counts where
            `field` is not set.

    Raises:
        InputError: a word of another form, or a localhost_ref with a type that has none.
    """
    if security.HasField(field):
        profile = getattr(security, field)
        if profile.localhost_ref and profile.profile_type != pb.SecurityProfile.Localhost:
            raise InputError(f"{field}.localhost_ref is only for profile_type Localhost")
        return profile
    if not word:
        return None
    kind, _, name = word.partition("/")
    if kind == "localhost" and name:
        return pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=name)
    kinds = {
        "runtime/default": pb.SecurityProfile.RuntimeDefault,
        "docker/default": pb.SecurityProfile.RuntimeDefault,
        "unconfined": pb.SecurityProfile.Unconfined,
    }
    if word not in kinds:
        raise InputError(
            f"{field} profile {word[:200]!r} must be runtime/default, unconfined or localhost/<name>"
        )
    return pb.SecurityProfile(profile_type=kinds[word])


def read_profile(name: str, root: Path) -> bytes:
    """The bytes of a Localhost profile, named absolutely or relative to `root`, and inside it either way.

    Raises:
        InputError: empty, outside, missing, not a regular file, or too large.
    """
    relative = os.path.relpath(name, root) if name.startswith("/") else name
    parts = relative.split("/")
    if not name or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise InputError(f"seccomp localhost_ref {name[:200]!r} must name a file inside {root}")
    path = root.joinpath(*parts)
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"seccomp profile {path} leads out of {root}")
    return read_input(path, limit=_MAX_PROFILE_BYTES, noun="seccomp profile")
