"""The node's user and group ids that pods with user namespaces of their own share out. Pure.

Source: pkg/kubelet/kubelet_getters.go (getKubeletMappings), v1.37; KEP-127; subuid(5).
"""

from __future__ import annotations

from dataclasses import dataclass

from host.errors import InputError

UNIT = 65536
ALL_IDS = 1 << 32
USER = "kubelet"
"""The user whose line in /etc/subuid and /etc/subgid says which ids pods may have."""


@dataclass(frozen=True)
class IdPool:
    """The node's ids for pods: `count` from `first` on, in ranges of `length` for one pod each."""

    first: int = UNIT
    count: int = ALL_IDS - UNIT
    length: int = UNIT

    @property
    def ranges(self) -> int:
        """How many pods it is enough for."""
        return self.count // self.length


def id_pool(*, length: int = UNIT, max_pods: int, subuid: str = "", subgid: str = "") -> IdPool:
    """The pool by configuration. Pure.

    Args:
        length: ids a pod gets (userNamespaces.idsPerPod).
        subuid, subgid: content of the files; without a line for `kubelet` everything above `length` is taken.

    Raises:
        InputError: ids that cannot be, or too few; the message names the file or field.
    """
    if length < UNIT or length % UNIT or length >= ALL_IDS:
        raise InputError(
            f"userNamespaces.idsPerPod must be a multiple of {UNIT} below {ALL_IDS}, not {length}"
        )
    uids, gids = _line(subuid, "/etc/subuid"), _line(subgid, "/etc/subgid")
    if uids != gids:
        raise InputError(f"/etc/subuid and /etc/subgid must give {USER} the same ids, not {uids} and {gids}")
    first, count = uids or (length, ALL_IDS - length)
    if first < length or first % length or count % length or first + count > ALL_IDS:
        raise InputError(
            f"/etc/subuid: {USER}:{first}:{count} must be multiples of {length}, from {length} on"
        )
    found = IdPool(first, count, length)
    if found.ranges < max_pods:
        raise InputError(f"/etc/subuid: {USER} has ids for {found.ranges} pods, maxPods is {max_pods}")
    return found


def _line(text: str, path: str) -> tuple[int, int] | None:
    for line in text.splitlines():
        name, _, rest = line.strip().partition(":")
        if name == USER:
            first, _, count = rest.partition(":")
            if not (first.isdecimal() and count.isdecimal()):
                raise InputError(f"{path}: {line.strip()} is not user:first:count")
            return int(first), int(count)
    return None
