"""The layers below the one that is applied, topmost first: what it leaves out is looked up here."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from cri.images.deferred import Parts
from cri.images.errors import CorruptContent
from cri.images.rootdir import RootDir


class ParentsNeeded(Exception):
    """The layer cannot be applied without looking at the layers below."""


class LowerLayers:
    """`layers`: their directories; None when they are not there yet, and any look raises ParentsNeeded."""

    def __init__(self, layers: Sequence[RootDir] | None) -> None:
        self._layers = layers

    def _all(self) -> Sequence[RootDir]:
        if self._layers is None:
            raise ParentsNeeded
        return self._layers

    @contextmanager
    def file(self, path: Parts) -> Iterator[int]:
        """A descriptor of the regular file at a path, closed afterwards.

        Raises:
            CorruptContent: there is none: a hard link leads to it.
        """
        fd = self._open_file(path)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open_file(self, path: Parts) -> int:
        for layer in self._all():
            with suppress(FileNotFoundError, NotADirectoryError):
                directory = layer.open_dir(path[:-1])
                try:
                    if not stat.S_ISREG(os.lstat(path[-1], dir_fd=directory).st_mode):
                        break
                    return os.open(path[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
                finally:
                    os.close(directory)
        raise CorruptContent("tar hard link to a file that is in no layer")

    @contextmanager
    def directory(self, path: Parts) -> Iterator[int | None]:
        """A descriptor of the directory at a path, closed afterwards; None where no layer has one."""
        fd = self._open_directory(path)
        try:
            yield fd
        finally:
            if fd is not None:
                os.close(fd)

    def _open_directory(self, path: Parts) -> int | None:
        for layer in self._all():
            try:
                return layer.open_dir(path, follow_last=False)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as exc:
                if exc.errno == errno.ELOOP:
                    return None  # a symbolic link hides what lower layers have here
                raise
        return None
