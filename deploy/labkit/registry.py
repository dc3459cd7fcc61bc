"""A small OCI registry for labs and tests: pull, push, mirror of everything.

Start it with `python -m deploy.labkit.registry --root DIR --listen ADDR:PORT` from the checkout, or
in-process with `serve`. It speaks the OCI distribution API (v2) without TLS. Repositories keep their
full name (`docker.io/library/busybox`); a request for `/v2/library/busybox/…?ns=docker.io`, as
containerd's mirrors send it, finds the same. Not for production: no deletion, no accounts by default.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RegistryStore:
    """Content of the registry on disk: `blobs/sha256/<hex>` and `repos/<name>/{manifests,tags}`.

    Args:
        root: directory; made when missing.
    """

    root: Path


async def serve(root: Path, *, host: str = "127.0.0.1", port: int = 5000) -> object:
    """Serve the store below `root` until the returned runner's `cleanup()` is awaited.

    Returns an aiohttp AppRunner; with port 0 its `addresses[0]` holds the port that was chosen.
    """
    raise NotImplementedError
