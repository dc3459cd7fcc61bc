"""User namespaces (KEP-127) and ID-mapped mounts as CRI asks for them: read, checked, refused by name. Pure.

What is accepted is what containerd accepts: for a pod exactly one range of users and one of groups, the same
ones for each of its containers; none of the node's namespaces beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from cri.runtime import idmaps
from cri.runtime.spec import IdMaps, IdRange
from host.errors import InputError
from proto.cri import runtime_pb2 as pb

_FIELD = "namespace_options.userns_options"


def user_namespace(options: pb.NamespaceOption) -> IdMaps | None:
    """The maps of the user namespace asked for; None: the node's.

    Raises:
        InputError: a mode other than POD and NODE, or maps that do not go with it.
    """
    if not options.HasField("userns_options"):
        return None
    wanted = options.userns_options
    if wanted.mode == pb.NODE:
        if wanted.uids or wanted.gids:
            raise InputError(f"{_FIELD}: mode NODE has no uids and gids to map")
        return None
    if wanted.mode != pb.POD:
        known = wanted.mode in pb.NamespaceMode.values()
        mode = pb.NamespaceMode.Name(wanted.mode) if known else wanted.mode
        raise InputError(f"{_FIELD}.mode {mode} is not possible: POD or NODE")
    for name in ("uids", "gids"):
        if len(getattr(wanted, name)) != 1:
            count = len(getattr(wanted, name))
            raise InputError(f"{_FIELD}.{name} has {count} mappings: exactly one is needed with mode POD")
    maps = _maps(_FIELD, wanted.uids, wanted.gids)
    for name, ranges in (("uids", maps.uids), ("gids", maps.gids)):
        if ranges[0].inside != 0:
            raise InputError(f"{_FIELD}.{name}: container_id must be 0, or there is no root in the pod")
    return maps


def pod_user_namespace(options: pb.NamespaceOption) -> IdMaps | None:
    """The same for a sandbox, whose other namespaces must be its own then.

    Raises:
        InputError: as `user_namespace`, or one of the node's namespaces together with mode POD.
    """
    maps = user_namespace(options)
    if maps is not None:
        for name in ("network", "pid", "ipc"):
            if getattr(options, name) == pb.NODE:
                words = f"a user namespace ({_FIELD}.mode POD) has no rights in the node's namespace"
                raise InputError(f"namespace_options.{name} NODE: {words}")
    return maps


def check_container(options: pb.NamespaceOption, sandbox: pb.NamespaceOption) -> None:
    """See that a container asks for the user namespace its pod has.

    Raises:
        InputError: another mode or other maps; or the node's processes beside it.
    """
    wanted = user_namespace(options)
    if wanted != user_namespace(sandbox):
        raise InputError(f"{_FIELD} of the container differs from the pod sandbox's: the two must be equal")
    if wanted is not None and options.pid == pb.NODE:
        raise InputError(f"namespace_options.pid NODE cannot go with {_FIELD}.mode POD")


def mount_maps(mount: pb.Mount, pod: IdMaps | None) -> IdMaps | None:
    """The maps of a mount; None: its files keep their ids.

    Raises:
        InputError: only one of the two maps, a range that cannot be, or an image volume with other maps than
            its pod's, which it is put together with.
    """
    if not mount.uidMappings and not mount.gidMappings:
        return None
    what = f"mounts: {mount.container_path}"
    if not mount.uidMappings or not mount.gidMappings:
        raise InputError(f"{what} has only one of uidMappings and gidMappings: give both or none")
    maps = _maps(what, mount.uidMappings, mount.gidMappings)
    if mount.image.image and maps != pod:
        raise InputError(f"{what} is an image volume: its mappings must be those of the pod")
    return maps


def _maps(what: str, uids: Sequence[pb.IDMapping], gids: Sequence[pb.IDMapping]) -> IdMaps:
    maps = IdMaps(uids=_ranges(uids), gids=_ranges(gids))
    idmaps.message(what, maps)
    return maps


def _ranges(mappings: Sequence[pb.IDMapping]) -> tuple[IdRange, ...]:
    return tuple(
        IdRange(inside=item.container_id, outside=item.host_id, length=item.length) for item in mappings
    )
