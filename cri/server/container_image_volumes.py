"""Image volumes (KEP-4639): an image's files as a read-only mount in a container.

The merged layers are mounted in the container's own folder on the host, where the mount outlives a restart of
the daemon, and are bound into the container like any other host folder.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cri.runtime import rooted, userns
from cri.runtime.rootfs import overlay_by_mount
from host import netns, syscalls
from host.errors import HostError, InputError, NotFound
from host.netns import NetnsRef

_PREFIX = "image-"
_ATTRIBUTES = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
"""Programs in an image volume may be run (KEP-4639), but not with more rights than their caller."""


def detached_image(layers: Sequence[Path], spare: Path) -> int:
    """The merged layers on a read-only mount that is attached nowhere yet and ends with its descriptor.

    Args:
        layers: top first.
        spare: an empty folder, since overlayfs wants two lower directories where there is no upper one.

    Returns:
        the mount's descriptor, to be closed by the caller.
    """
    folders = [*layers, spare] if len(layers) == 1 else layers
    options = tuple((b"lowerdir+", os.fsencode(folder)) for folder in folders)
    try:
        return syscalls.new_mount(b"overlay", options, attributes=_ATTRIBUTES)
    except HostError as exc:
        if exc.errno != errno.EINVAL:
            raise
    with ExitStack() as stack:
        fds = []
        for folder in folders:
            fds.append(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            stack.callback(os.close, fds[-1])
        view = overlay_by_mount(os.fsencode(spare), fds, b"", b"", ())
    syscalls.mount_setattr(view, set=_ATTRIBUTES)
    return view


def mount_image(
    data: Path, index: int, layers: Sequence[Path], sub_path: str, owner: NetnsRef | None = None
) -> Path:
    """Mount an image below a container's folder.

    Args:
        data: the container's folder.
        index: which of its image volumes this is.
        layers: the image's layers, top first.
        sub_path: a folder or file inside the image, or empty for all of it.
        owner: the network namespace of a pod with a user namespace, which the files are to belong to.

    Returns:
        the path to bind into the container.

    Raises:
        InputError: the image has no such sub-path.
        HostError: the kernel refused to mount.
    """
    point, spare = data / f"{_PREFIX}{index}", data / "empty"
    point.mkdir(mode=0o700)
    spare.mkdir(mode=0o755, exist_ok=True)
    with ExitStack() as stack:
        if owner is not None:
            layers = stack.enter_context(_mapped(data, index, layers, owner))
        view = detached_image(layers, spare)
    try:
        target = os.open(point, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            syscalls.move_mount(view, target)
        finally:
            os.close(target)
        return _inside(view, point, sub_path) if sub_path else point
    finally:
        os.close(view)


@contextmanager
def _mapped(data: Path, index: int, layers: Sequence[Path], owner: NetnsRef) -> Iterator[Sequence[Path]]:
    """ID-mapped copies of the layers, mounted as long as it takes to merge them: overlayfs keeps its own.

    The merged files cannot be mapped afterwards, overlayfs has no ID-mapped mounts itself.
    """
    points = [data / f"{_PREFIX}{index}-{number}" for number in range(len(layers))]
    idmap = netns.owner(owner)
    try:
        for layer, point in zip(layers, points, strict=True):
            point.mkdir(mode=0o700)
            _attach(_mapped_copy(layer, idmap), point)
        yield points
    finally:
        os.close(idmap)
        unmount(points)


def _mapped_copy(layer: Path, idmap: int) -> int:
    copy = syscalls.open_tree(syscalls.AT_FDCWD, str(layer), syscalls.OPEN_TREE_CLONE)
    try:
        userns.map_mount(copy, idmap, str(layer))
    except HostError:
        os.close(copy)
        raise
    return copy


def _attach(mount: int, point: Path) -> None:
    """Mount and let go of a detached mount."""
    target = os.open(point, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        syscalls.move_mount(mount, target)
    finally:
        os.close(target)
        os.close(mount)


def _inside(view: int, point: Path, sub_path: str) -> Path:
    """The host path of something in the image, links resolved inside it; nobody can change it afterwards."""
    try:
        found = rooted.find(view, sub_path.encode())
    except NotFound as exc:
        raise InputError(f"image volume has no {sub_path[:200]!r}") from exc
    try:
        path = Path(os.readlink(f"/proc/self/fd/{found}"))
    finally:
        os.close(found)
    if not path.is_relative_to(point):
        raise InputError(f"image_sub_path {sub_path[:200]!r} leads out of the image")
    return path


def unmount_images(data: Path) -> None:
    """Take a container's image volumes down; what is not mounted is fine."""
    if data.is_dir():
        unmount(data.glob(f"{_PREFIX}*"))


def unmount(points: Iterable[Path]) -> None:
    """Take down what is mounted at each of these paths, if anything."""
    for point in points:
        with suppress(NotFound):
            try:
                syscalls.umount(str(point), syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
            except HostError as exc:
                if exc.errno != errno.EINVAL:  # no mount point, the daemon was killed before it mounted
                    raise
