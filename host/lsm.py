"""Which security modules of the kernel can confine a container (Documentation/admin-guide/LSM)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class SecurityModules:
    """What there is on this machine."""

    apparmor: bool = False
    selinux: bool = False
    profiles: frozenset[str] = frozenset()
    """Names of the AppArmor profiles that are loaded."""


def security_modules(sys: Path = Path("/sys")) -> SecurityModules:
    """Look at the kernel; reading the list of profiles needs securityfs mounted below `sys`."""
    return SecurityModules(
        apparmor=_read(sys / "module/apparmor/parameters/enabled").startswith("Y"),
        selinux=(sys / "fs/selinux/enforce").exists(),
        profiles=loaded_profiles(_read(sys / "kernel/security/apparmor/profiles")),
    )


def loaded_profiles(text: str) -> frozenset[str]:
    """The names in a list of "name (mode)" lines."""
    return frozenset(line.rpartition(" (")[0] for line in text.splitlines() if line.endswith(")"))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
