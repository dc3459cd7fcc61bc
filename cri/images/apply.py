"""Applying a layer's archive to a directory that becomes an overlayfs lower directory.

The rules are those of the OCI image-spec (layer.md) with containerd's choices where it is silent:
whiteouts become 0:0 character devices and `trusted.overlay.opaque`, setuid bits stay, parents that the
archive leaves out copy their attributes from the layers below. Hard links to a file of a lower layer copy
that file up. Runs in the unpack process (`cri.images.unpack`), never in the daemon.

Device nodes and the opaque mark need rights in the machine's own user namespace, which the process that reads
the archive does not have. It leaves an empty file in the place of a device and a list
(`cri.images.deferred`).
"""

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from cri.images import attributes, tarstream
from cri.images.deferred import Deferred, Parts
from cri.images.errors import CorruptContent
from cri.images.lower import LowerLayers
from cri.images.rootdir import RootDir, clean
from cri.images.tarstream import Entry, TarStream

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ID_BITS = stat.S_ISUID | stat.S_ISGID
_PAGE = 4096
_DEVICES = (tarstream.CHAR, tarstream.BLOCK_DEVICE)


@dataclass(kw_only=True)
class Applied:
    """What became of a layer."""

    inodes: int = 0
    size: int = 0
    """Bytes on disk, rounded up to pages."""
    opaque_root: bool = False
    """The layer hides everything below it; overlayfs does not look at its root for that mark."""


class Applier:
    """Applies one layer below `root`.

    Args:
        root: the new layer's directory, empty.
        trash: a directory on the same file system for what later entries displace.
        parents: directories of the layers below, topmost first; None when they are not there yet.
        privileged: whether owners are set.
    """

    def __init__(
        self,
        root: RootDir,
        trash: RootDir,
        parents: Sequence[RootDir] | None = (),
        *,
        privileged: bool = True,
    ) -> None:
        self._root = root
        self._trash = trash
        self._trashed = 0
        self._lower = LowerLayers(parents)
        self._privileged = privileged
        self._result = Applied()
        self._dir_parts: Parts | None = None
        self._dir_fd = -1
        self._dir_times: dict[Parts, int] = {}
        self._whiteouts: set[Parts] = set()
        self.deferred = Deferred()

    def apply(self, stream: TarStream) -> Applied:
        """Apply every entry.

        Raises:
            CorruptContent: one makes no sense.
            OSError: the disk refuses.
            ParentsNeeded: only without `parents`; what is there then must be thrown away.
        """
        try:
            for entry in stream:
                try:
                    self._apply(entry, stream)
                except OSError as exc:
                    raise _explained(exc, entry.name) from exc
            self._set_dir_times()
        finally:
            self._forget_dir()
        return self._result

    def _apply(self, entry: Entry, stream: TarStream) -> None:
        parts = clean(entry.name)
        if not parts:
            if entry.kind != tarstream.DIR:
                raise CorruptContent("tar entry for the root is not a directory")
            self._dir_attributes(self._root.fd, parts, entry)
            return
        base = parts[-1]
        parent = self._parent(parts[:-1])
        if base.startswith(_WHITEOUT):
            self._whiteout(parent, parts)
            return
        self.deferred.devices.pop(parts, None)
        if entry.kind == tarstream.DIR:
            self._directory(parent, parts, entry)
            return
        if entry.kind == tarstream.LINK:
            self._hardlink(parent, parts, entry)
            return
        try:
            self._make(parent, base, entry, stream)
        except FileExistsError:
            self._displace(parent, base)
            self._make(parent, base, entry, stream)
        if entry.kind in _DEVICES:
            self.deferred.add_device(parts, entry)
        self._count(entry.size)

    def _make(self, parent: int, base: bytes, entry: Entry, stream: TarStream) -> None:
        if entry.kind == tarstream.FILE:
            fd = os.open(base, _CREATE, entry.mode & 0o777, dir_fd=parent)
            try:
                for piece in stream.payload():
                    _write_all(fd, piece)
                self._file_attributes(fd, entry)
            finally:
                os.close(fd)
            return
        if entry.kind in _DEVICES:
            os.close(os.open(base, _CREATE, 0, dir_fd=parent))
            return
        if entry.kind == tarstream.SYMLINK:
            os.symlink(entry.link, base, dir_fd=parent)
        else:
            os.mknod(base, stat.S_IFIFO | entry.mode, dir_fd=parent)
        if self._privileged:
            os.chown(base, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(base, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _file_attributes(self, fd: int, entry: Entry) -> None:
        if self._privileged:
            os.fchown(fd, entry.uid, entry.gid)  # first: it clears setuid bits and file capabilities
        if entry.mode & (_ID_BITS | stat.S_ISVTX):
            os.fchmod(fd, entry.mode)
        if entry.xattrs:
            attributes.set_all(fd, entry.xattrs)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _directory(self, parent: int, parts: Parts, entry: Entry) -> None:
        base = parts[-1]
        try:
            os.mkdir(base, 0o700, dir_fd=parent)
            self._count(_PAGE)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(base, dir_fd=parent).st_mode):
                self._displace(parent, base)
                os.mkdir(base, 0o700, dir_fd=parent)
                self._count(_PAGE)
                if parts in self._whiteouts:
                    self._mark_opaque(parts)  # removed below and made anew here
        fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            self._dir_attributes(fd, parts, entry)
        finally:
            os.close(fd)

    def _dir_attributes(self, fd: int, parts: Parts, entry: Entry) -> None:
        if self._privileged:
            os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        attributes.set_all(fd, entry.xattrs)
        self._dir_times[parts] = entry.mtime_ns

    def _hardlink(self, parent: int, parts: Parts, entry: Entry) -> None:
        source = clean(entry.link)
        if not source:
            raise CorruptContent("tar hard link has no target")
        source_dir = -1
        try:
            source_dir = self._root.open_dir(source[:-1])
            self._link(source_dir, source[-1], parts, parent)
            if device := self.deferred.devices.get(source):
                self.deferred.add_device(parts, device)
        except FileNotFoundError:
            self._copy_up(source, parts)
        finally:
            if source_dir >= 0:
                os.close(source_dir)

    def _link(self, source_dir: int, source: bytes, parts: Parts, parent: int) -> None:
        found = os.lstat(source, dir_fd=source_dir)
        if stat.S_ISDIR(found.st_mode):
            raise CorruptContent("tar hard link to a directory")
        if _is_whiteout(found):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            os.link(source, parts[-1], src_dir_fd=source_dir, dst_dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            there = os.lstat(parts[-1], dir_fd=parent)
            if (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino):
                return
            self._displace(parent, parts[-1])
            os.link(source, parts[-1], src_dir_fd=source_dir, dst_dir_fd=parent, follow_symlinks=False)

    def _copy_up(self, source: Parts, parts: Parts) -> None:
        """Make `parts` a copy of a lower layer's file: a link cannot reach across directories of layers."""
        with self._lower.file(source) as lower:
            info = os.fstat(lower)
            parent = self._parent(parts[:-1])
            try:
                fd = os.open(parts[-1], _CREATE, 0o600, dir_fd=parent)
            except FileExistsError:
                self._displace(parent, parts[-1])
                fd = os.open(parts[-1], _CREATE, 0o600, dir_fd=parent)
            try:
                while os.sendfile(fd, lower, None, 1 << 24):
                    pass
                self._copy_attributes(lower, fd, info)
                os.utime(fd, ns=(info.st_mtime_ns, info.st_mtime_ns))
            finally:
                os.close(fd)
            self._count(info.st_size)

    def _copy_attributes(self, source: int, fd: int, info: os.stat_result) -> None:
        if self._privileged:
            os.fchown(fd, info.st_uid, info.st_gid)
        os.fchmod(fd, stat.S_IMODE(info.st_mode))
        attributes.copy_all(source, fd)

    def _whiteout(self, parent: int, parts: Parts) -> None:
        base = parts[-1]
        if base == _OPAQUE:
            self._mark_opaque(parts[:-1])
            return
        if base.startswith(_AUFS):
            return  # bookkeeping of aufs, which no reader of layers needs
        hidden = base[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise CorruptContent("tar whiteout hides nothing")
        target = (*parts[:-1], hidden)
        self._whiteouts.add(target)
        try:
            os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent)
            self._count(0)
        except FileExistsError:
            # A whiteout hides lower layers only; what this layer has made under the name stays.
            if stat.S_ISDIR(os.lstat(hidden, dir_fd=parent).st_mode):
                self._mark_opaque(target)

    def _mark_opaque(self, parts: Parts) -> None:
        if parts:
            self.deferred.add_opaque(parts)
        else:
            self._result.opaque_root = True

    def _parent(self, parts: Parts) -> int:
        """A descriptor of the directory at `parts`, kept until another one is wanted."""
        if parts == self._dir_parts:
            return self._dir_fd
        self._forget_dir()
        try:
            fd = self._root.open_dir(parts)
        except (FileNotFoundError, NotADirectoryError):
            self._make_parents(parts)
            fd = self._root.open_dir(parts)
        self._dir_parts, self._dir_fd = parts, fd
        return fd

    def _forget_dir(self) -> None:
        if self._dir_parts is not None:
            os.close(self._dir_fd)
            self._dir_parts = None

    def _make_parents(self, parts: Parts) -> None:
        """Make the directories of a path that the archive did not list, each like the one it covers."""
        for end in range(1, len(parts) + 1):
            here, base = parts[:end], parts[end - 1]
            directory = self._root.open_dir(parts[: end - 1])
            try:
                try:
                    os.mkdir(base, 0o755, dir_fd=directory)
                except FileExistsError:
                    if not _is_whiteout(os.lstat(base, dir_fd=directory)):
                        continue
                    os.unlink(base, dir_fd=directory)
                    os.mkdir(base, 0o755, dir_fd=directory)
                    self._mark_opaque(here)
                    continue
            finally:
                os.close(directory)
            self._count(_PAGE)
            fd = self._root.open_dir(here, follow_last=False)
            try:
                self._copy_dir_attributes(fd, here)
            finally:
                os.close(fd)

    def _copy_dir_attributes(self, fd: int, parts: Parts) -> None:
        with self._lower.directory(parts) as below:
            if below is not None:
                info = os.fstat(below)
                self._copy_attributes(below, fd, info)
                self._dir_times[parts] = info.st_mtime_ns

    def _displace(self, parent: int, base: bytes) -> None:
        """Remove what stands at a place; later entries win over earlier ones.

        Directories are moved away whole, so that neither their size nor their depth matters here.
        """
        if not stat.S_ISDIR(os.lstat(base, dir_fd=parent).st_mode):
            os.unlink(base, dir_fd=parent)
            return
        self._trashed += 1
        os.rename(base, str(self._trashed).encode(), src_dir_fd=parent, dst_dir_fd=self._trash.fd)

    def _set_dir_times(self) -> None:
        for parts, mtime_ns in self._dir_times.items():
            try:
                fd = self._root.open_dir(parts, follow_last=False)
            except OSError as exc:
                if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue  # a later entry took the place of the directory or of one above it
                raise
            try:
                os.utime(fd, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(fd)

    def _count(self, size: int) -> None:
        self._result.inodes += 1
        self._result.size += -(-size // _PAGE) * _PAGE


def _is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _explained(exc: OSError, name: bytes) -> Exception:
    """The disk's failure as it is; what only a strange archive can cause as CorruptContent."""
    strange = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EINVAL, errno.ENOENT, errno.EISDIR)
    if exc.errno in strange:
        shown = ascii(os.fsdecode(name[:160]))
        return CorruptContent(f"tar entry {shown} cannot be placed: {os.strerror(exc.errno or 0).lower()}")
    return exc
