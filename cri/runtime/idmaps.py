"""ID maps of user namespaces and ID-mapped mounts: checked, and as a supervisor is told them. Pure.

See user_namespaces(7), mount_setattr(2) and KEP-127.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from cri.runtime.spec import IdMaps, IdRange, Mount, SandboxSpec
from host.errors import InputError

_IDS = (1 << 32) - 1
"""Ids are 0 to 2^32-2; the last number means "no id" to the kernel."""
_MAX_RANGES = 340
"""user_namespaces(7): lines of a uid_map since Linux 4.15."""
_TTY = 5
"""Group of terminals, as everywhere."""


def message(what: str, maps: IdMaps) -> dict[str, Any]:
    """Maps for `userns.make`: lists of [inside, outside, length].

    Raises:
        InputError: a map that the kernel would refuse; the message begins with `what`.
    """
    return {"uids": _ranges(f"{what}: uid map", maps.uids), "gids": _ranges(f"{what}: gid map", maps.gids)}


def pod(spec: SandboxSpec) -> dict[str, Any] | None:
    """The maps of a pod's user namespace, with the host's ids of its root user and group; None: it has none.

    Raises:
        InputError: as `message`; 0 is not mapped; or the pod shares a namespace with the node, which its root
            would have no rights in.
    """
    if spec.user_namespace is None:
        return None
    for name in ("network", "ipc", "uts"):
        if getattr(spec, f"host_{name}"):
            raise InputError(f"user namespace: not with the node's {name} namespace, which it cannot own")
    found = message("user namespace", spec.user_namespace)
    uid, gid = host_id(found["uids"], 0), host_id(found["gids"], 0)
    if uid is None or gid is None:
        raise InputError("user namespace: its maps must have id 0, which owns what is made for a container")
    return {**found, "root": [uid, gid]}


def terminal_group(pod: dict[str, Any] | None) -> int:
    """Who terminals belong to, as the host's id: group 5, or root's where the pod's map has no 5."""
    if pod is None:
        return _TTY
    found = host_id(pod["gids"], _TTY)
    return int(pod["root"][1]) if found is None else found


def wanted(mounts: Sequence[Mount], pod: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Every map that a container needs a user namespace for; the pod's own is the first, where it has one.

    Raises:
        InputError: as `message`.
    """
    found = [{"uids": pod["uids"], "gids": pod["gids"]}] if pod else []
    for mount in mounts:
        maps = _of_mount(mount)
        if maps is not None and maps not in found:
            found.append(maps)
    return found


def number(mount: Mount, maps: list[dict[str, Any]]) -> int:
    """Which of them a mount has; -1: none."""
    mine = _of_mount(mount)
    return -1 if mine is None else maps.index(mine)


def _of_mount(mount: Mount) -> dict[str, Any] | None:
    return message(f"mount {mount.target}", mount.idmaps) if mount.idmaps else None


def host_id(ranges: list[list[int]], inner: int) -> int | None:
    """The host's id for one of the container; None: it has no such id."""
    for inside, outside, length in ranges:
        if inside <= inner < inside + length:
            return outside + inner - inside
    return None


def _ranges(what: str, ranges: tuple[IdRange, ...]) -> list[list[int]]:
    if not 0 < len(ranges) <= _MAX_RANGES:
        raise InputError(f"{what} has {len(ranges)} ranges: 1 to {_MAX_RANGES} are possible")
    for each in ranges:
        if each.length < 1 or min(each.inside, each.outside) < 0:
            raise InputError(f"{what} has a range of length {each.length}: at least 1, from 0 upwards")
        if max(each.inside, each.outside) + each.length > _IDS:
            raise InputError(f"{what} has a range that ends beyond id {_IDS - 1}")
    for side in ("inside", "outside"):
        spans = sorted((getattr(each, side), getattr(each, side) + each.length) for each in ranges)
        if any(before[1] > after[0] for before, after in pairwise(spans)):
            raise InputError(f"{what} has two ranges with the same id {side}")
    return [[each.inside, each.outside, each.length] for each in ranges]
