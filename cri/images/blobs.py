"""Content-addressed files: `blobs/sha256/<hex>`, each complete and verified, or not there at all.

A blob is written to `partial/<hex>`, hashed as it is written, and renamed when digest and size are right.
What a cut connection or a killed daemon left there is hashed again and continued by the next download.
Reading a small blob checks its digest again; layers are checked while they are unpacked.
"""

import asyncio
import errno
import fcntl
import hashlib
import os
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path

from cri.images.errors import (
    CorruptContent,
    ImageError,
    ImageMissing,
    RegistryUnavailable,
    StoreFull,
)
from cri.images.reference import is_digest, parse_digest

_READ = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


def disk_error(exc: OSError, what: str) -> ImageError:
    """The store's own error for a failure of its file system."""
    reason = os.strerror(exc.errno or errno.EIO).lower()
    return (StoreFull if exc.errno in _FULL else ImageError)(f"{what}: {reason}")


class BlobStore:
    """Blobs below `root`, with their temporary files in `root/tmp`. Methods block; call them in threads."""

    def __init__(self, root: Path) -> None:
        self._dir = root / "blobs" / "sha256"
        self._tmp = root / "tmp"
        self._partial = root / "partial"
        self._sizes: dict[str, int] = {}

    def load(self) -> None:
        """Make the directories and learn what is there."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tmp.mkdir(mode=0o700, exist_ok=True)
        self._partial.mkdir(mode=0o700, exist_ok=True)
        with os.scandir(self._dir) as entries:
            found = {f"sha256:{entry.name}": entry.stat().st_size for entry in entries}
        self._sizes = {digest: size for digest, size in found.items() if is_digest(digest)}

    def __contains__(self, digest: str) -> bool:
        return digest in self._sizes

    @property
    def sizes(self) -> dict[str, int]:
        """Digest -> bytes of every blob."""
        return self._sizes

    def path(self, digest: str) -> Path:
        """Where a blob is or would be."""
        return self._dir / parse_digest(digest).removeprefix("sha256:")

    def read(self, digest: str, limit: int) -> bytes:
        """A whole small blob, verified; ImageMissing or CorruptContent (and then removed)."""
        try:
            with self.path(digest).open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError as exc:
            raise ImageMissing(f"blob {digest} is not in the store") from exc
        except OSError as exc:
            raise disk_error(exc, f"blob {digest}") from exc
        if len(data) > limit or "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            self.remove(digest)
            raise CorruptContent(f"stored blob {digest} does not match its digest")
        return data

    def put(self, data: bytes) -> str:
        """Store a small blob and return its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        with self.writer(digest, len(data)) as writer:
            writer.write(data)
            writer.commit()
        return digest

    def writer(self, digest: str, size: int) -> "BlobWriter":
        """A file that becomes the blob `digest` of `size` bytes at its `commit`; a context manager."""
        partial = self._partial / parse_digest(digest).removeprefix("sha256:")
        return BlobWriter(self, digest=digest, size=size, temp=partial)

    def capture(self) -> "BlobWriter":
        """A file that becomes a blob of whatever digest its content has."""
        return BlobWriter(self, digest="", size=-1, temp=self._tmp / f"blob-{secrets.token_hex(8)}")

    def adopt(self, digest: str) -> bool:
        """Learn of a blob that another process has put in place; whether it is there."""
        try:
            self._sizes[digest] = self.path(digest).stat().st_size
        except FileNotFoundError:
            return False
        return True

    def remove(self, digest: str) -> None:
        """Remove a blob; an absent one is fine."""
        with suppress(FileNotFoundError):
            self.path(digest).unlink()
        self._sizes.pop(digest, None)

    def drop_partials(self, *, older_than: float) -> None:
        """Delete what cut-off downloads left and nobody has continued for so many seconds."""
        for path in self._partial.iterdir():
            with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while a download goes on
                if time.time() - os.fstat(file.fileno()).st_mtime >= older_than:
                    path.unlink()

    def added(self, digest: str, size: int) -> None:
        """Note a blob that a writer has renamed into place."""
        self._sizes[digest] = size


class BlobWriter:
    """One blob under way. Leaving the context without `commit` removes what was written, except when the
    registry went away or the caller did: then `resume` of the next writer finds it.

    `digest` is what the content must have, or empty until `commit` for a capture.
    """

    def __init__(self, store: BlobStore, *, digest: str, size: int, temp: Path) -> None:
        self._store = store
        self.digest = digest
        self._size = size
        self._temp = temp
        self._fd = -1
        self._hash = hashlib.sha256()
        # A cancelled caller leaves its context while a write of its may still run in a thread.
        self._lock = threading.Lock()
        self.count = 0

    def __enter__(self) -> "BlobWriter":
        try:
            self._fd = os.open(self._temp, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if self._fd >= 0:
                os.close(self._fd)
            raise disk_error(exc, f"blob {self.digest}") from exc
        return self

    def __exit__(self, _: object, exc: BaseException | None, trace: object) -> None:
        # Worth keeping is what another connection can continue, not what is wrong or in the way.
        keep = isinstance(exc, RegistryUnavailable | asyncio.CancelledError) and self.count > 0
        with self._lock:
            if not keep and self._fd >= 0:
                with suppress(FileNotFoundError):
                    self._temp.unlink()
            os.close(self._fd)
            self._fd = -1

    def resume(self) -> None:
        """Take over what an earlier download of the same blob left; its end is where to go on."""
        with self._lock:
            left = os.fstat(self._fd).st_size
            if left > self._size:
                os.ftruncate(self._fd, 0)
            while data := os.read(self._fd, _READ):
                self._hash.update(data)
                self.count += len(data)

    def write(self, data: bytes | memoryview) -> None:
        """Append; CorruptContent as soon as there is more than there should be, StoreFull."""
        with self._lock:
            self.count += len(data)
            if self.count > self._size >= 0:
                raise CorruptContent(f"blob {self.digest} is longer than the {self._size} bytes announced")
            self._hash.update(data)
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(self._fd, view) :]
            except OSError as exc:
                raise disk_error(exc, f"blob {self.digest}") from exc

    def restart(self) -> None:
        """Forget everything written so far: the sender begins again."""
        with self._lock:
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            self._hash = hashlib.sha256()
            self.count = 0

    def commit(self) -> None:
        """Verify size and digest and put the blob in place; CorruptContent when either is wrong."""
        actual = "sha256:" + self._hash.hexdigest()
        if self._size < 0:
            self._size, self.digest = self.count, actual
        if self.count != self._size:
            raise CorruptContent(f"blob {self.digest} has {self.count} bytes instead of {self._size}")
        if actual != self.digest:
            raise CorruptContent(f"blob {self.digest} has content of digest {actual}")
        try:
            with self._lock:
                os.rename(self._temp, self._store.path(self.digest))
        except OSError as exc:
            raise disk_error(exc, f"blob {self.digest}") from exc
        self._store.added(self.digest, self._size)
