"""The image store: what the CRI image service and the container set-up see of images.

    <root>/blobs/sha256/<hex>         manifests, configurations, compressed layers
    <root>/layers/<chain id>/diff     unpacked layers, one overlay lower directory each
    <root>/images/<hex>.json          one record an image, by image ID
    <root>/tmp/                       downloads and unpackings under way; emptied by `open`

Everything comes into being under a temporary name and is renamed when it is whole and verified, so
a crash or a full disk at any point leaves complete images and rubbish in `tmp/`, never half an image.
"""

from pathlib import Path

from cri.images.model import (
    Credentials,
    Image,
    ImageConfig,
    Progress,
    PullProgress,
    StoreUsage,
)

__all__ = ["Credentials", "Image", "ImageConfig", "ImageStore", "Progress", "PullProgress", "StoreUsage"]


class ImageStore:
    """Images on disk, and the pulls that bring them there.

    The constructor does nothing; `open` must be awaited before anything else, `close` at the end.
    All methods belong to one event loop. Names (`ref`) may be short (`busybox`), with tag and/or digest.
    """

    def __init__(
        self,
        root: Path,
        *,
        registry_config_dir: Path | None = None,
        max_concurrent_downloads: int = 3,
        keep_layer_blobs: bool = True,
        progress_timeout: float = 300.0,
        pinned: tuple[str, ...] = (),
    ) -> None:
        """Describe a store.

        Args:
            root: directory of the store, made with mode 0700 when missing.
            registry_config_dir: mirrors in containerd's layout, `<dir>/<host>/hosts.toml` and
                `<dir>/_default/hosts.toml`; None for none.
            max_concurrent_downloads: layers of one pull fetched at a time.
            keep_layer_blobs: keep compressed layers after unpacking (needed for export).
            progress_timeout: seconds without a received byte after which a download is given up.
            pinned: references whose images are reported as pinned.
        """

    async def open(self) -> None:
        """Load the index, drop half-done work, take the store's lock (host.errors.Busy when taken)."""

    async def close(self) -> None:
        """Cancel pulls under way and release the lock."""

    async def pull(self, ref: str, auth: Credentials | None = None, progress: Progress | None = None) -> Image:
        """Bring an image into the store, unpacked, and return it.

        A pull of the same reference with the same credentials that is under way is joined.
        Raises InputError, PullError (see `cri.images.errors`) or StoreFull.
        """
        raise NotImplementedError

    def get(self, ref_or_id: str) -> Image | None:
        """Find an image by reference, by ID (`sha256:<hex>` or bare hex), or by unique ID prefix; None when absent."""
        raise NotImplementedError

    def list(self) -> tuple[Image, ...]:
        """All images, sorted by ID; those removed while in use are not listed."""
        raise NotImplementedError

    async def remove(self, ref_or_id: str) -> None:
        """Remove an image with all its names; absent images are fine (CRI RemoveImage is idempotent).

        Layers shared with other images or used by a container (`hold`) stay until their last use ends.
        """

    def layers(self, image_id: str) -> tuple[Path, ...]:
        """Overlay lower directories of an image, topmost first; ImageMissing when absent."""
        raise NotImplementedError

    def hold(self, image_id: str, owner: str) -> None:
        """Keep an image's layers for `owner` (a container ID), also if the image is removed meanwhile.

        Holds live in memory: after a restart the server holds again for every container it finds,
        then awaits `collect`. Raises ImageMissing.
        """

    def release(self, image_id: str, owner: str) -> None:
        """End a hold; unknown ones are fine. Layers nobody needs any more are removed in the background."""

    async def collect(self) -> None:
        """Remove blobs, layers and removed images that nothing refers to; to be awaited once after recovery."""

    def usage(self) -> StoreUsage:
        """Bytes and inodes of the store, from its own records: no disk walk."""
        raise NotImplementedError

    def config_json(self, image_id: str) -> bytes:
        """The image's configuration document, as stored, for verbose ImageStatus; ImageMissing when absent."""
        raise NotImplementedError
