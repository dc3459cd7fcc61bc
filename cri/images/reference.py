"""Image references and digests: the words people and manifests use, parsed once at the edge.

Grammar and defaults are those of the reference grammar that Docker, containerd and Kubernetes share:
`[host[:port]/]path[:tag][@digest]`, with `docker.io`, `library/` and `latest` filled in. A name with
both tag and digest means the digest. Only sha256 digests exist here: everything that becomes a path or
an address is built from values that passed this module.
"""

import re
from dataclasses import dataclass

from host.errors import InputError

DEFAULT_DOMAIN = "docker.io"
_MAX_NAME = 255
_MAX_REFERENCE = 512

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*\Z")
_LABEL = r"(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?\Z")
_HEX_ID = re.compile(r"[0-9a-f]{3,64}\Z")


def is_digest(text: object) -> bool:
    """Whether `text` is a well-formed `sha256:` digest: 64 lower-case hex digits, nothing else."""
    return isinstance(text, str) and _DIGEST.match(text) is not None


def parse_digest(text: object, what: str = "digest") -> str:
    """Return `text` if it is a well-formed sha256 digest; InputError naming `what` otherwise."""
    if not is_digest(text):
        raise InputError(f"{what} {_shown(text)} is not sha256: and 64 lower-case hex digits")
    return str(text)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A full image name. Exactly one of `tag` and `digest` is not empty."""

    domain: str
    """`docker.io`, `registry.example:5000`."""
    path: str
    """`library/busybox`."""
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """`docker.io/library/busybox`: the repository without tag or digest."""
        return f"{self.domain}/{self.path}"

    @property
    def selector(self) -> str:
        """The tag or digest, as it stands in a registry's manifest address."""
        return self.digest or self.tag

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def parse(text: str) -> Reference:
    """Parse an image reference and fill in the defaults; InputError when it is malformed."""
    if not isinstance(text, str) or not text or len(text) > _MAX_REFERENCE:
        raise InputError(f"image reference {_shown(text)} is empty or over {_MAX_REFERENCE} characters")
    rest, at, digest = text.partition("@")
    if at:
        parse_digest(digest, f"image reference {_shown(text)}: digest")
    head, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")
    if colon and not _TAG.match(tag):
        raise InputError(f"image reference {_shown(text)}: tag {_shown(tag)} is malformed")
    domain, path = _split_domain(head + slash + last)
    if not _DOMAIN.match(domain):
        raise InputError(f"image reference {_shown(text)}: registry {_shown(domain)} is not a host name")
    if not _PATH.match(path):
        raise InputError(f"image reference {_shown(text)}: repository {_shown(path)} is not lower-case words")
    if len(domain) + 1 + len(path) > _MAX_NAME:
        raise InputError(f"image reference {_shown(text)}: name is longer than {_MAX_NAME} characters")
    if digest:
        return Reference(domain=domain, path=path, digest=digest)
    return Reference(domain=domain, path=path, tag=tag or "latest")


def parse_id(text: str) -> str:
    """The hex digits of something that looks like an image ID or a prefix of one, else an empty string."""
    digits = text.removeprefix("sha256:")
    return digits if _HEX_ID.match(digits) else ""


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_domain = bool(slash) and (
        "." in first or ":" in first or first == "localhost" or first != first.lower()
    )
    domain, path = (first, rest) if is_domain else (DEFAULT_DOMAIN, name)
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    return domain, path


def _shown(text: object) -> str:
    return ascii(text if not isinstance(text, str) or len(text) <= 160 else text[:160] + "…")
