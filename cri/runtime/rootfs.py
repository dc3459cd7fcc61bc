"""A container's root: overlay, kernel file systems, bind mounts, masks, and the pivot into it.

Runs in the container's init, after fork and before exec. Mounts are made detached (fsopen, open_tree), get
their flags while nobody can reach them, and are then moved onto targets that were opened inside the root: no
path of the image is ever resolved on the host (see `rooted`). Sources are opened before the new mount
namespace exists, so that they keep their peer groups and propagation works in both directions.

Everything is given as the dict that `messages.rootfs` writes.
"""

from __future__ import annotations

import errno
import os
import stat

from cri.runtime import rooted, userns
from host import syscalls
from host.errors import HostError, from_errno, from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NOSUID, NODEV, NOEXEC, RDONLY = (
    syscalls.MOUNT_ATTR_NOSUID,
    syscalls.MOUNT_ATTR_NODEV,
    syscalls.MOUNT_ATTR_NOEXEC,
    syscalls.MOUNT_ATTR_RDONLY,
)
_PROPAGATION = {"private": syscalls.MS_PRIVATE, "slave": syscalls.MS_SLAVE, "shared": syscalls.MS_SHARED}
_NODES = ((b"null", 3), (b"zero", 5), (b"full", 7), (b"random", 8), (b"urandom", 9))
_LINKS = (
    (b"/proc/self/fd", b"fd"),
    (b"/proc/self/fd/0", b"stdin"),
    (b"/proc/self/fd/1", b"stdout"),
    (b"/proc/self/fd/2", b"stderr"),
    (b"pts/ptmx", b"ptmx"),
    (b"/proc/kcore", b"core"),
)


class Sources:
    """Detached copies of everything a container takes from the host; made in the host's mount namespace.

    `idmaps`: the user namespaces whose maps the plan refers to by number.
    """

    def __init__(self, plan: dict[str, Any], idmaps: tuple[int, ...] = ()) -> None:
        self.binds = [_bind_source(mount, idmaps) for mount in plan["mounts"]]
        self.cgroups = [(name, _clone(path, recursive=False)) for name, path in plan["cgroup_dirs"]]
        self.shm = _clone(plan["shm"], recursive=False) if plan["shm"] else -1


def _clone(path: bytes, *, recursive: bool) -> int:
    flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if recursive else 0)
    return syscalls.open_tree(syscalls.AT_FDCWD, path, flags)


def _bind_source(mount: dict[str, Any], idmaps: tuple[int, ...]) -> int:
    fd = _clone(mount["source"], recursive=True)
    if mount["idmap"] >= 0:
        what = f"{_text(mount['source'])} at {_text(mount['target'])}"
        userns.map_mount(fd, idmaps[mount["idmap"]], what)
    flags = sum(
        bit for name, bit in (("nosuid", NOSUID), ("nodev", NODEV), ("noexec", NOEXEC)) if mount[name]
    )
    try:
        if mount["readonly"]:
            syscalls.mount_setattr(fd, set=flags | RDONLY, recursive=mount["recursive_readonly"])
        elif flags:
            syscalls.mount_setattr(fd, set=flags)
        syscalls.mount_setattr(fd, propagation=_PROPAGATION[mount["propagation"]], recursive=True)
    except HostError as exc:
        raise from_oserror(exc, f"set flags of mount {_text(mount['source'])}") from exc
    return fd


def open_root(plan: dict[str, Any], owner: dict[str, Any] | None = None, idmap: int = -1) -> int:
    """Mount the root of the container on its mount point, in a mount namespace of its own.

    Args:
        owner: the pod's user namespace as in the message, where it has one, and
        idmap: a descriptor of that.

    Returns:
        a descriptor of the root.
    """
    syscalls.mount(b"none", b"/", b"", syscalls.MS_REC | syscalls.MS_SLAVE)
    if owner:
        _map_layers(plan, idmap, owner["root"])
    if plan["upper"]:
        root = _overlay(plan["lower"], plan["upper"], plan["work"], _context(plan))
    elif len(plan["lower"]) == 1:
        root = _clone(plan["lower"][0], recursive=True)
    else:
        root = _overlay(plan["lower"], b"", b"", _context(plan))
    syscalls.mount_setattr(root, propagation=syscalls.MS_PRIVATE, recursive=True)
    point = os.open(plan["mountpoint"], os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    syscalls.move_mount(root, point)
    os.close(point)
    return root


def _map_layers(plan: dict[str, Any], idmap: int, root: list[int]) -> None:
    """Mount an ID-mapped copy of each layer over itself: overlayfs takes what is mounted there (Linux 5.19).

    The writable layer stays as it is. What a container makes has the pod's ids on disk, as with containerd,
    so that a set-user-ID file of its root is nobody's on the node.

    Args:
        idmap: the pod's user namespace.
        root: the host's ids of its root, who gets the writable layer.
    """
    if plan["upper"]:
        os.chown(plan["upper"], *root)
    for folder in plan["lower"]:
        copy = _clone(folder, recursive=False)
        userns.map_mount(copy, idmap, _text(folder))
        place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        syscalls.move_mount(copy, place)
        os.close(place)
        os.close(copy)


def _context(plan: dict[str, Any]) -> tuple[tuple[bytes, bytes], ...]:
    """The mount option that gives every file of a file system the container's SELinux label."""
    return ((b"context", plan["label"]),) if plan["label"] else ()


def _overlay(lower: list[bytes], upper: bytes, work: bytes, context: tuple[tuple[bytes, bytes], ...]) -> int:
    """By the new mount API, which takes layers one by one; else (before 6.8) by mount(2)."""
    layers = tuple((b"lowerdir+", folder) for folder in lower)
    above = ((b"upperdir", upper), (b"workdir", work)) if upper else ()
    try:
        return syscalls.new_mount(b"overlay", (*layers, *above, *context), source=b"overlay")
    except HostError as exc:
        if exc.errno != errno.EINVAL:
            raise
    fds = [os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for folder in lower]
    try:
        return overlay_by_mount(os.path.dirname(work or lower[0]), fds, upper, work, context)
    finally:
        for fd in fds:
            os.close(fd)


def overlay_by_mount(
    staging: bytes, lower: list[int], upper: bytes, work: bytes, context: tuple[tuple[bytes, bytes], ...]
) -> int:
    """An overlay by mount(2), detached, for kernels before 6.8.

    mount(2) takes a page of text and cuts off the rest, so layers go by descriptor: some 200 fit in.

    Args:
        staging: a folder to mount on for a moment.
        lower: open folders, top first.
    """
    data = b"lowerdir=" + b":".join(b"/proc/self/fd/%d" % fd for fd in lower)
    if upper:
        data += b",upperdir=" + upper + b",workdir=" + work
    for name, label in context:
        data += b"," + name + b'="' + label + b'"'
    syscalls.mount(b"overlay", staging, b"overlay", 0, data)
    root = syscalls.open_tree(syscalls.AT_FDCWD, staging, syscalls.OPEN_TREE_CLONE)
    syscalls.umount(staging, syscalls.MNT_DETACH)
    return root


def build(root: int, plan: dict[str, Any], sources: Sources) -> int:
    """Mount everything below the root.

    Returns:
        a descriptor of the container's own devpts.
    """
    _real_folder_mount(root, b"proc", syscalls.new_mount(b"proc", attributes=NOSUID | NODEV | NOEXEC))
    dev, pts = _dev(root, plan, sources)
    null = os.open(b"null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dev)
    _sys(root, plan, sources)
    for mount in plan["tmpfs"]:
        options = (
            (b"mode", b"%o" % mount["mode"]),
            *(((b"size", b"%d" % mount["size"]),) if mount["size"] else ()),
            *_context(plan),
        )
        fd = syscalls.new_mount(b"tmpfs", options, attributes=NOSUID | NODEV)
        _move(root, fd, mount["target"])
    for mount, fd in zip(plan["mounts"], sources.binds, strict=True):
        try:
            _move(root, fd, mount["target"])
        except HostError as exc:
            raise from_oserror(exc, f"mount {_text(mount['source'])} at {_text(mount['target'])}") from exc
    for path in plan["masked"]:
        _mask(root, path, null)
    for path in plan["readonly"]:
        _read_only(root, path)
    if plan["readonly_rootfs"]:
        syscalls.mount_setattr(root, set=RDONLY)
    return pts


def _real_folder_mount(root: int, name: bytes, fd: int) -> None:
    """/proc, /sys and /dev must be folders of the image, not links (CVE-2019-19921, CVE-2023-27561)."""
    try:
        target = rooted.find(root, name, os.O_PATH | os.O_DIRECTORY, syscalls.RESOLVE_NO_SYMLINKS)
    except HostError as exc:
        if exc.errno != errno.ENOENT:
            raise from_oserror(exc, f"/{_text(name)} of the image must be a folder") from exc
        os.mkdir(name, 0o755, dir_fd=root)
        target = rooted.find(root, name, os.O_PATH | os.O_DIRECTORY, syscalls.RESOLVE_NO_SYMLINKS)
    syscalls.move_mount(fd, target)
    os.close(target)


def _move(root: int, fd: int, target: bytes) -> None:
    """Move a detached mount onto a path in the root, made as a folder or file after the mount's own kind."""
    is_folder = stat.S_ISDIR(os.stat(fd).st_mode)
    where = rooted.folder(root, target) if is_folder else rooted.file(root, target)
    syscalls.move_mount(fd, where)
    os.close(where)


def _dev(root: int, plan: dict[str, Any], sources: Sources) -> tuple[int, int]:
    """A tmpfs with the nodes every container has, then devpts, shm and mqueue in it.

    Returns:
        descriptors of /dev and of devpts. Both are ours: no file of the image is reachable through them.
    """
    context = _context(plan)
    size = ((b"mode", b"0755"), (b"size", b"65536k"))
    dev = syscalls.new_mount(b"tmpfs", (*size, *context), attributes=NOSUID)
    for name, minor in _NODES:
        _node(dev, name, stat.S_IFCHR | 0o666, os.makedev(1, minor))
    _node(dev, b"tty", stat.S_IFCHR | 0o666, os.makedev(5, 0))
    for target, name in _LINKS:
        os.symlink(target, name, dir_fd=dev)
    for name in (b"pts", b"shm", b"mqueue"):
        os.mkdir(name, 0o755, dir_fd=dev)
    _real_folder_mount(root, b"dev", dev)
    for device in plan["devices"]:
        _device(root, dev, device)
    group = (b"gid", b"%d" % plan["tty_group"])
    options = ((b"newinstance", b""), (b"ptmxmode", b"0666"), (b"mode", b"0620"), group)
    pts = syscalls.new_mount(b"devpts", (*options, *context), attributes=NOSUID | NOEXEC)
    _onto(dev, b"pts", pts)
    if sources.shm >= 0:
        _onto(dev, b"shm", sources.shm)
    _onto(dev, b"mqueue", syscalls.new_mount(b"mqueue", context, attributes=NOSUID | NODEV | NOEXEC))
    return dev, pts


def _node(folder: int, name: bytes, mode: int, number: int) -> None:
    before = os.umask(0)
    try:
        os.mknod(name, mode, number, dir_fd=folder)
    finally:
        os.umask(before)


def _device(root: int, dev: int, device: dict[str, Any]) -> None:
    """A device node of the host. Only below /dev, which is our own file system, are nodes made."""
    steps = rooted.parts(device["target"])
    if steps[0] != b"dev" or len(steps) < 2:
        raise from_errno(errno.EINVAL, f"device {_text(device['target'])}: its place must be below /dev")
    parent = rooted.folder(dev, b"/".join(steps[1:-1])) if len(steps) > 2 else os.dup(dev)
    try:
        _node(parent, steps[-1], device["mode"], device["number"])
        os.chown(steps[-1], device["uid"], device["gid"], dir_fd=parent, follow_symlinks=False)
    except FileExistsError:
        return
    except OSError as exc:
        raise from_oserror(exc, f"make device {_text(device['target'])}") from exc
    finally:
        os.close(parent)


def _onto(folder: int, name: bytes, fd: int) -> None:
    target = rooted.find(folder, name, os.O_PATH | os.O_DIRECTORY, syscalls.RESOLVE_NO_SYMLINKS)
    syscalls.move_mount(fd, target)
    os.close(target)


def _sys(root: int, plan: dict[str, Any], sources: Sources) -> None:
    """/sys, and in it the container's own cgroup of every hierarchy."""
    flags = NOSUID | NODEV | NOEXEC | (0 if plan["writable_sys"] else RDONLY)
    sysfs = syscalls.new_mount(b"sysfs", attributes=flags)
    _real_folder_mount(root, b"sys", sysfs)
    for _, fd in sources.cgroups:
        syscalls.mount_setattr(fd, set=flags)
    if not sources.cgroups:
        return
    if plan["cgroup_v2"]:
        _onto(sysfs, b"fs/cgroup", sources.cgroups[0][1])
        return
    tree = syscalls.new_mount(b"tmpfs", ((b"mode", b"0755"),), attributes=NOSUID | NODEV | NOEXEC)
    for name, _ in sources.cgroups:
        os.mkdir(name, 0o755, dir_fd=tree)
    _onto(sysfs, b"fs/cgroup", tree)
    for name, fd in sources.cgroups:
        _onto(tree, name, fd)
    if not plan["writable_sys"]:
        syscalls.mount_setattr(tree, set=RDONLY)


def _mask(root: int, path: bytes, null: int) -> None:
    """Hide a path behind our own null device or an empty read-only folder; a missing one needs no mask.

    Args:
        null: a descriptor of the null device we made (CVE-2025-31133: never the image's /dev/null by path).
    """
    try:
        target = rooted.find(root, path)
    except HostError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR):
            return
        raise
    if stat.S_ISDIR(os.stat(target).st_mode):
        cover = syscalls.new_mount(b"tmpfs", ((b"size", b"0"),), attributes=NOSUID | NODEV | NOEXEC | RDONLY)
    else:
        cover = syscalls.open_tree(null, b"", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
    syscalls.move_mount(cover, target)
    os.close(target)
    os.close(cover)


def _read_only(root: int, path: bytes) -> None:
    try:
        target = rooted.find(root, path)
    except HostError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR):
            return
        raise
    flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE | syscalls.AT_EMPTY_PATH
    copy = syscalls.open_tree(target, b"", flags)
    syscalls.mount_setattr(copy, set=RDONLY, recursive=True)
    syscalls.move_mount(copy, target)
    os.close(target)
    os.close(copy)


def enter(root: int) -> None:
    """Make the root this process's "/"; the host's is still mounted over it until `leave_host`."""
    os.fchdir(root)
    syscalls.pivot_root(b".", b".")


def leave_host() -> None:
    """Let go of the host's root, after `enter`. Waits 1-3 ms for an RCU grace period."""
    syscalls.umount(b".", syscalls.MNT_DETACH)
    os.chdir(b"/")


def _text(path: bytes) -> str:
    return path.decode(errors="replace")
