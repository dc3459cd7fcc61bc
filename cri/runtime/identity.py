"""Who a container's process is: the image's USER resolved to numbers, and privileges put down.

The image's passwd and group files are hostile input: an all-digit name is a number or an error and is never
looked up (CVE-2024-40635, CVE-2026-46680), nothing is asked of NSS (CVE-2019-14271), sizes are capped by
`rooted.read`.
"""

from __future__ import annotations

import errno
import os

from host import syscalls
from host.errors import from_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_ID = 0x7FFFFFFF
_LAST_CAPABILITY = 63
SYS_ADMIN = 1 << 21


def number(word: bytes) -> int:
    """A user or group number.

    Raises:
        HostError: EINVAL outside 0..2^31-1.
    """
    value = int(word) if len(word) <= 10 else MAX_ID + 1
    if value > MAX_ID:
        raise from_errno(errno.EINVAL, f"user or group {word[:32].decode()} is out of range")
    return value


def resolve(user: dict[str, Any], passwd: bytes, group: bytes) -> dict[str, Any]:
    """Numbers for a user as `messages.user` describes it.

    Args:
        user: name, uid, gid, groups, merge, nonroot.
        passwd: content of the image's /etc/passwd.
        group: content of the image's /etc/group.

    Returns:
        uid, gid, groups (primary included), home.

    Raises:
        HostError: unknown name, number out of range, or root where that is refused.
    """
    name, _, group_name = user["name"].partition(b":")
    if user["uid"] is not None:
        name = b"%d" % user["uid"]
        group_name = b""
    uid, gid, login, home = _user(name or b"0", passwd)
    if group_name:
        gid = _group(group_name, group)
    if user["gid"] is not None:
        gid = number(b"%d" % user["gid"])
    if user["nonroot"] and uid == 0:
        raise from_errno(errno.EPERM, "container has runAsNonRoot and the image would run as root")
    groups = [gid, *(number(b"%d" % extra) for extra in user["groups"])]
    if user["merge"] and login:
        groups += _memberships(login, group)
    return {"uid": uid, "gid": gid, "groups": sorted(set(groups)), "home": home or b"/"}


def _rows(text: bytes, width: int) -> list[list[bytes]]:
    rows = (line.split(b":") for line in text.split(b"\n"))
    return [row for row in rows if len(row) >= width]


def _user(word: bytes, passwd: bytes) -> tuple[int, int, bytes, bytes]:
    """(uid, gid, login name, home); a number that passwd does not have is a user of group 0."""
    wanted = number(word) if word.isdigit() else None
    for login, _, uid, gid, _, home, *_ in _rows(passwd, 6):
        if not (uid.isdigit() and gid.isdigit()):
            continue
        if (wanted is None and login == word) or (wanted is not None and int(uid) == wanted):
            return number(uid), number(gid), login, home
    if wanted is None:
        raise from_errno(
            errno.ESRCH, f"unable to find user {word[:64].decode(errors='replace')} in the image"
        )
    return wanted, 0, b"", b""


def _group(word: bytes, group: bytes) -> int:
    if word.isdigit():
        return number(word)
    for name, _, gid, *_ in _rows(group, 3):
        if name == word and gid.isdigit():
            return number(gid)
    raise from_errno(errno.ESRCH, f"unable to find group {word[:64].decode(errors='replace')} in the image")


def _memberships(login: bytes, group: bytes) -> list[int]:
    rows = _rows(group, 4)
    return [number(gid) for _, _, gid, members, *_ in rows if gid.isdigit() and login in members.split(b",")]


def put_down(who: dict[str, Any], privileges: dict[str, Any]) -> None:
    """Become that user with those capabilities and no way back; the seccomp filter last.

    Without no_new_privs a filter may only be loaded by CAP_SYS_ADMIN, so it then stands before the last
    capset, as in runc; with it, nothing follows but exec.

    Args:
        who: uid, gid, groups.
        privileges: capabilities and ambient (bit masks), no_new_privs, seccomp (bytes).
    """
    kept, ambient = privileges["capabilities"], privileges["ambient"]
    effective = kept if who["uid"] == 0 else ambient
    if privileges["no_new_privs"]:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    _trim_bounding(kept)
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    os.setgroups(who["groups"])
    os.setresgid(who["gid"], who["gid"], who["gid"])
    os.setresuid(who["uid"], who["uid"], who["uid"])
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 0)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
    if privileges["seccomp"] and not privileges["no_new_privs"]:
        syscalls.capset(effective=SYS_ADMIN, permitted=kept | SYS_ADMIN, inheritable=ambient)
        syscalls.load_seccomp(privileges["seccomp"])
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    syscalls.capset(effective=effective, permitted=kept, inheritable=ambient)
    for bit in range(_LAST_CAPABILITY):
        if ambient >> bit & 1:
            syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, bit)
    if privileges["seccomp"] and privileges["no_new_privs"]:
        syscalls.load_seccomp(privileges["seccomp"])


def held_capabilities() -> int:
    """The capabilities this process may pass on (its bounding set), as a mask."""
    mask = 0
    for bit in range(_LAST_CAPABILITY):
        try:
            mask |= syscalls.prctl(syscalls.PR_CAPBSET_READ, bit) << bit
        except OSError:
            break
    return mask


def _trim_bounding(kept: int) -> None:
    for bit in range(_LAST_CAPABILITY):
        if kept >> bit & 1:
            continue
        try:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, bit)
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                return
            raise
