"""Extended attributes of unpacked files: which are taken over, and how failures are seen."""

import errno
import os

# ENOTSUP: the file system has no such attributes. EPERM: user.* on links and devices.
_REFUSALS = (errno.ENOTSUP, errno.EPERM)


def wanted(name: bytes) -> bool:
    """Whether an image may set this attribute.

    File capabilities and the user's own; never marks of overlayfs or of the host's security policy.
    """
    return name == b"security.capability" or (
        name.startswith(b"user.") and not name.startswith(b"user.overlay.")
    )


def set_all(fd: int, attributes: dict[bytes, bytes]) -> None:
    """Set the wanted ones on an open file; a file system without attributes is no failure."""
    for name, value in attributes.items():
        if wanted(name):
            try:
                os.setxattr(fd, name, value)
            except OSError as exc:
                if exc.errno not in _REFUSALS:
                    raise


def copy_all(source: int, target: int) -> None:
    """Give one open file the wanted attributes of another."""
    set_all(target, {os.fsencode(name): os.getxattr(source, name) for name in os.listxattr(source)})
