"""Which seccomp filter a container gets. Whatever cannot be understood is refused, never left unconfined
(CVE-2023-2431: an empty Localhost name once meant no filter at all)."""

from __future__ import annotations

import os
from pathlib import Path

from cri.runtime import seccomp
from cri.runtime.security import capabilities
from host.errors import InputError
from host.files import read_input
from proto.cri import runtime_pb2 as pb

_MAX_PROFILE_BYTES = 4 << 20


def seccomp_filter(security: pb.LinuxContainerSecurityContext, *, root: Path) -> bytes:
    """The compiled filter; empty for unconfined (asked for, or privileged, or nothing said).

    Args:
        security: the container's security context.
        root: the folder Localhost profiles must be in.

    Raises:
        InputError: an unknown type, a Localhost profile that is missing, unreadable or outside `root`.
    """
    if security.privileged or not security.HasField("seccomp"):
        return b""
    kind = security.seccomp.profile_type
    if kind == pb.SecurityProfile.Unconfined:
        return b""
    asked = security.capabilities
    held = capabilities(add=asked.add_capabilities, drop=asked.drop_capabilities)
    if kind == pb.SecurityProfile.RuntimeDefault:
        return seccomp.compile_default(capabilities=held)
    if kind == pb.SecurityProfile.Localhost:
        return seccomp.compile_profile(read_profile(security.seccomp.localhost_ref, root), capabilities=held)
    raise InputError(f"seccomp profile type {kind} is not known")


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
