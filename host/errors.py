"""What the machine can answer instead of doing as asked, as types.

    ValueError
     └ InputError          what a person or a peer gave us is wrong: the message names the field and the fix
    OSError
     └ HostError           the kernel or a program refused; `errno` is always set
        ├ NotFound         ENOENT ENODEV ENXIO ESRCH EADDRNOTAVAIL ENOTDIR
        ├ Exists           EEXIST EADDRINUSE ENOTEMPTY
        ├ Busy             EBUSY ETXTBSY EAGAIN
        ├ Denied           EPERM EACCES EROFS
        ├ NoSpace          ENOSPC EDQUOT EMFILE ENFILE ENOMEM
        ├ Unsupported      EOPNOTSUPP ENOSYS EPROTONOSUPPORT EAFNOSUPPORT
        └ TimedOut         ETIMEDOUT

Errors are made here and nowhere else, so that a caller decides by type or errno and never by reading text.
"""

from __future__ import annotations

import errno
import os


class InputError(ValueError):
    """Something given to us is wrong; the message names the field or file and what would be right."""


class HostError(OSError):
    """The kernel or a program refused: `errno` says how, `what` what was asked, `detail` its own words."""

    what: str
    detail: str

    def __init__(self, code: int, what: str, detail: str = "") -> None:
        super().__init__(code, os.strerror(code))
        self.what = what
        self.detail = detail

    def __str__(self) -> str:
        words = f"{self.what}: {os.strerror(self.errno or 0).lower()}"
        return f"{words}: {self.detail}" if self.detail else words


class NotFound(HostError):
    """The file, device, process or namespace is not there."""


class Exists(HostError):
    """It is there already, or its place is taken."""


class Busy(HostError):
    """In use by somebody else; a later try may succeed."""


class Denied(HostError):
    """Not permitted: a missing capability, a read-only mount, a policy."""


class NoSpace(HostError):
    """Disk, inodes, descriptors or memory are used up."""


class Unsupported(HostError):
    """This kernel has no such call, protocol or feature."""


class TimedOut(HostError):
    """No answer within the time allowed."""


_TYPES: dict[int, type[HostError]] = {
    **dict.fromkeys(
        (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENOTDIR), NotFound
    ),
    **dict.fromkeys((errno.EEXIST, errno.EADDRINUSE, errno.ENOTEMPTY), Exists),
    **dict.fromkeys((errno.EBUSY, errno.ETXTBSY, errno.EAGAIN), Busy),
    **dict.fromkeys((errno.EPERM, errno.EACCES, errno.EROFS), Denied),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM), NoSpace),
    **dict.fromkeys((errno.EOPNOTSUPP, errno.ENOSYS, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT), Unsupported),
    errno.ETIMEDOUT: TimedOut,
}


def from_errno(code: int, what: str, detail: str = "") -> HostError:
    """The error for an errno value.

    Args:
        code: an errno value, positive.
        what: what was being done, lower case, for instance "mount /proc on /x".
        detail: the other side's own words, if it had any.
    """
    return _TYPES.get(code, HostError)(code, what, detail)


def from_oserror(exc: OSError, what: str) -> HostError:
    """The same for an OSError of the standard library (its errno, or EIO where it has none)."""
    return from_errno(exc.errno or errno.EIO, what)
