"""What can go wrong with an image, and what the CRI server should answer.

    ImageError                     gRPC status
    ├── PullError
    │   ├── ImageNotFound          NOT_FOUND            the registry does not know the name, tag or digest
    │   ├── AccessDenied           UNAUTHENTICATED      401 or 403 after the credentials were offered
    │   ├── RegistryUnavailable    UNAVAILABLE          no connection, time-out, 429, 5xx
    │   └── CorruptContent         DATA_LOSS            wrong digest or size, malformed manifest or layer
    ├── ImageMissing               NOT_FOUND            no such image in this store
    └── StoreFull                  RESOURCE_EXHAUSTED   no space or no inodes; the store is whole

A reference that cannot be parsed is `host.errors.InputError` (INVALID_ARGUMENT).
Messages name the image and the registry's own reason; addresses in them are already redacted.
"""


class ImageError(Exception):
    """Base of every failure of `cri.images`."""


class PullError(ImageError):
    """A pull failed; the message starts with what was being fetched."""


class ImageNotFound(PullError):
    """The registry does not have this name, tag, digest or platform."""


class AccessDenied(PullError):
    """The registry refused the credentials, or wants some and none were given."""


class RegistryUnavailable(PullError):
    """The registry could not be reached or is overloaded: trying again later is sensible."""


class CorruptContent(PullError):
    """The content is not what its digest, size or media type says, or breaks a limit."""


class ImageMissing(ImageError):
    """The store holds no such image."""


class StoreFull(ImageError):
    """The file system of the store has no space or no inodes left."""
