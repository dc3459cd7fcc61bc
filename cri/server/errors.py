"""The one place where errors become gRPC statuses.

FailedPrecondition    the object exists but is in the wrong state            FAILED_PRECONDITION
AlreadyExists         the name is taken by another object                    ALREADY_EXISTS
InputError            the request is wrong                                   INVALID_ARGUMENT
UnknownId, NotFound   no such object                                         NOT_FOUND
NoSpace               disk, inodes, descriptors                              RESOURCE_EXHAUSTED
TimedOut              no answer in time                                      DEADLINE_EXCEEDED
Unsupported           the kernel or this runtime has no such feature         UNIMPLEMENTED
Busy                  in use                                                 UNAVAILABLE
ImageError            as its own table in cri/images/errors says
everything else       INTERNAL, and a traceback in the log
"""

from __future__ import annotations

import errno

from grpc import StatusCode

from cri.images.errors import (
    AccessDenied,
    CorruptContent,
    ImageError,
    ImageMissing,
    ImageNotFound,
    RegistryUnavailable,
    StoreFull,
)
from cri.network import NetworkError
from cri.runtime.errors import StartFailed
from cri.state.store import UnknownId
from cri.streaming.tokens import TooManyStreams
from host.errors import (
    Busy,
    Exists,
    HostError,
    InputError,
    NoSpace,
    NotFound,
    TimedOut,
    Unsupported,
    from_oserror,
)


class FailedPrecondition(Exception):
    """The object is not in the state this call needs."""


class AlreadyExists(Exception):
    """The name asked for belongs to another object."""


EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
"""What any call to the system may meet, at places that have no words of their own for it."""
_CODES: tuple[tuple[type[Exception], StatusCode], ...] = (
    (InputError, StatusCode.INVALID_ARGUMENT),
    (UnknownId, StatusCode.NOT_FOUND),
    (FailedPrecondition, StatusCode.FAILED_PRECONDITION),
    (AlreadyExists, StatusCode.ALREADY_EXISTS),
    (NetworkError, StatusCode.UNKNOWN),
    (TooManyStreams, StatusCode.RESOURCE_EXHAUSTED),
    (ImageNotFound, StatusCode.NOT_FOUND),
    (ImageMissing, StatusCode.NOT_FOUND),
    (AccessDenied, StatusCode.UNAUTHENTICATED),
    (RegistryUnavailable, StatusCode.UNAVAILABLE),
    (CorruptContent, StatusCode.DATA_LOSS),
    (StoreFull, StatusCode.RESOURCE_EXHAUSTED),
    (ImageError, StatusCode.UNKNOWN),
    (StartFailed, StatusCode.UNKNOWN),
    (NotFound, StatusCode.NOT_FOUND),
    (Exists, StatusCode.ALREADY_EXISTS),
    (NoSpace, StatusCode.RESOURCE_EXHAUSTED),
    (TimedOut, StatusCode.DEADLINE_EXCEEDED),
    (Unsupported, StatusCode.UNIMPLEMENTED),
    (Busy, StatusCode.UNAVAILABLE),
    (HostError, StatusCode.INTERNAL),
)


def unimplemented(what: str) -> Unsupported:
    """The error for something this runtime does not do.

    Args:
        what: the call or the field, in CRI's words.
    """
    return Unsupported(errno.EOPNOTSUPP, what, "nodelet-cri does not do this")


def status_of(exc: Exception) -> tuple[StatusCode, str, bool]:
    """What to answer for an error: code, message, and whether it was foreseen (else it needs a traceback)."""
    if isinstance(exc, OSError) and exc.errno in EXHAUSTED and not isinstance(exc, HostError):
        exc = from_oserror(exc, f"{exc.filename or 'this call'}")
    for kind, code in _CODES:
        if isinstance(exc, kind):
            return code, str(exc), True
    return StatusCode.INTERNAL, f"internal error: {type(exc).__name__}: {exc}", False
