"""The image store: what the CRI image service and the container set-up see of images.

    <root>/blobs/sha256/<hex>         manifests, configurations, compressed layers
    <root>/layers/<chain id>/diff     unpacked layers, one overlay lower directory each
    <root>/images/<hex>.json          one record an image, by image ID
    <root>/partial/<hex>              downloads under way or cut off, to be resumed
    <root>/tmp/                       unpackings and imports under way; emptied by `open`

Everything comes into being under a temporary name and is renamed when it is whole and verified, so
a crash or a full disk at any point leaves complete images and rubbish in `tmp/`, never half an image.
"""

import asyncio
import importlib
import logging
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri.images import hosts, reference
from cri.images.blobs import BlobStore, disk_error
from cri.images.errors import ImageError, ImageMissing, StoreFull
from cri.images.index import ImageIndex, ImageRecord
from cri.images.layers import LayerStore
from cri.images.manifest import MAX_CONFIG_BYTES, Platform, this_platform
from cri.images.model import (
    Credentials,
    Image,
    ImageConfig,
    Progress,
    PullProgress,
    StoreUsage,
)
from cri.images.progress import Meter, PullBoard
from cri.images.pulling import Fetches, Pull, Pulled, Workshop
from host.errors import Busy
from host.failpoints import reach
from host.files import locked

if TYPE_CHECKING:
    import aiohttp

__all__ = ["Credentials", "Image", "ImageConfig", "ImageStore", "Progress", "PullProgress", "StoreUsage"]

_LOG = logging.getLogger(__name__)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SYNC_DELAY = 2.0
_PARTIAL_SECONDS = 24 * 3600.0


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
        platform: Platform | None = None,
        sync: Callable[[], None] = os.sync,
        session: "Callable[[float], aiohttp.ClientSession] | None" = None,
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
            platform: what images must be for; None for this machine's.
            sync: makes the store's files durable; called a while after a pull, in a thread.
            session: makes the HTTP client from its progress time-out; None for `registry.new_session`.
        """
        self._root = root
        self._registry_config_dir = registry_config_dir
        self._progress_timeout = progress_timeout
        self._pinned = frozenset(str(reference.parse(ref)) for ref in pinned)
        self._sync = sync
        self._new_session = session
        blobs = BlobStore(root)
        self._shop = Workshop(
            root=root,
            blobs=blobs,
            layers=LayerStore(root),
            platform=platform or this_platform(),
            downloads=max_concurrent_downloads,
            keep_layer_blobs=keep_layer_blobs,
        )
        self._index = ImageIndex(root, blobs)
        self._board = PullBoard()
        self._holds: dict[str, set[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._exit = ExitStack()
        self._session: aiohttp.ClientSession | None = None
        self._collecting = asyncio.Lock()
        self._syncing = False
        self._boot = ""

    async def open(self, *, shared: bool = False) -> None:
        """Load the index, drop half-done work, take the store's lock (host.errors.Busy when taken).

        Args:
            shared: for a short-lived importer beside the daemon: takes only the lock that keeps the
                daemon from sweeping, and tidies nothing. The daemon finds the new image by its record.
        """
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise disk_error(exc, f"image store {self._root}") from exc
        lock = self._shop.layers.import_lock if shared else self._root / "lock"
        self._exit.enter_context(locked(lock))
        self._boot = await asyncio.to_thread(_boot_id)
        for complaint in await asyncio.to_thread(self._load):
            _LOG.warning("%s", complaint)
        if shared:
            return
        with suppress(Busy), locked(self._shop.layers.import_lock):
            await self._shop.layers.sweep(everything=True)
        for record in self._index.records():
            if any(chain_id not in self._shop.layers for chain_id in record.chain):
                _LOG.warning("image %s lost a layer and is dropped: pull it again", record.id)
                self._index.delete(record.id)
        if any(record.boot for record in self._index.records()):
            self._background(self._sync_soon())

    def _load(self) -> tuple[str, ...]:
        self._shop.blobs.load()
        self._shop.layers.load()
        return self._index.load(self._boot)

    async def close(self) -> None:
        """Cancel pulls under way and release the lock."""
        await self._shop.joint.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._session is not None:
            await self._session.close()
        self._exit.close()

    async def pull(
        self, ref: str, auth: Credentials | None = None, progress: Progress | None = None
    ) -> Image:
        """Bring an image into the store, unpacked, and return it.

        A pull of the same reference with the same credentials that is under way is joined.
        Raises InputError, PullError (see `cri.images.errors`) or StoreFull.
        """
        parsed = reference.parse(ref)
        key = ("pull", parsed, auth)
        record: ImageRecord = await self._shop.joint.run(key, lambda: self._pull(parsed, auth, progress))
        return self._image(record)

    async def _pull(
        self, ref: reference.Reference, auth: Credentials | None, progress: Progress | None
    ) -> ImageRecord:
        # aiohttp takes a good part of a second to import: at the first pull, and beside the event loop.
        await asyncio.to_thread(importlib.import_module, "cri.images.registry")
        from cri.images.registry import Fetcher, new_session

        if self._session is None:
            self._session = (self._new_session or new_session)(self._progress_timeout)
        servers = await asyncio.to_thread(hosts.endpoints, ref.domain, self._registry_config_dir)
        return await self._bring(
            ref, Fetcher(self._session, ref, endpoints=servers, credentials=auth), progress=progress
        )

    async def _bring(
        self, ref: reference.Reference, fetcher: Fetches, *, progress: Progress | None = None
    ) -> ImageRecord:
        meter = Meter(str(ref), progress)
        self._board.begin(meter)
        failure = "cancelled"
        try:
            with ExitStack() as guard:
                pulled = await Pull(self._shop, ref, fetcher, guard=guard, meter=meter).run()
                reach("image_pull.fetched")
                record = self._record(ref, pulled)
                reach("image_pull.recorded")
            failure = ""
        except ImageError as exc:
            failure = str(exc)
            if isinstance(exc, StoreFull):
                await asyncio.to_thread(self._shop.blobs.drop_partials, older_than=0.0)
            raise
        finally:
            self._board.end(meter, failure=failure)
        self._background(self._sync_soon())
        return record

    def pulls(self) -> list[dict[str, Any]]:
        """The pulls under way, for people to look at: image, seconds, layers and bytes."""
        return self._board.facts()

    @property
    def blobs(self) -> BlobStore:
        """The store's content, for `cri.images.archive`."""
        return self._shop.blobs

    async def adopt(self, ref: reference.Reference, fetcher: Fetches) -> Image:
        """Make an image of content that comes from elsewhere than a registry; errors as for `pull`."""
        return self._image(await self._bring(ref, fetcher))

    def document(self, image_id: str) -> tuple[str, tuple[str, ...]]:
        """Digest of an image's manifest, and those of every blob it needs; ImageMissing."""
        record = self._index.record(image_id)
        return record.manifest, (record.manifest, record.id, *dict.fromkeys(record.layer_blobs))

    def _record(self, ref: reference.Reference, pulled: Pulled) -> ImageRecord:
        digests = {f"{ref.name}@{pulled.top_digest}"}
        return self._index.add(
            ImageRecord(
                id=pulled.id,
                tags=(str(ref),) if ref.tag else (),
                digests=tuple(digests),
                blobs=pulled.documents,
                manifest=pulled.manifest_digest,
                layer_blobs=pulled.layer_blobs,
                chain=pulled.chain,
                size=pulled.size,
                pulled_at=time.time(),
                boot=self._boot,
            )
        )

    def get(self, ref_or_id: str) -> Image | None:
        """Find an image by reference, ID (with or without `sha256:`) or unique ID prefix; None."""
        self._notice()
        record = self._index.find(ref_or_id)
        return self._image(record) if record else None

    def list(self) -> tuple[Image, ...]:
        """All images, sorted by ID; those removed while in use are not listed."""
        self._notice()
        return tuple(self._image(record) for record in self._index.records() if not record.removed)

    def _notice(self) -> None:
        """Take over what an importer has put beside us since we last looked: one stat(2) when nothing."""
        if not self._index.changed():
            return
        self._index.load(self._boot)
        for record in self._index.records():
            for digest in (record.id, *record.blobs, *record.layer_blobs):
                if digest not in self._shop.blobs:
                    self._shop.blobs.adopt(digest)
            for chain_id in record.chain:
                if chain_id not in self._shop.layers and not self._shop.layers.adopt(chain_id):
                    self._index.delete(record.id)
                    break

    async def remove(self, ref_or_id: str) -> None:
        """Remove an image with all its names; absent images are fine (CRI RemoveImage is idempotent).

        Layers shared with other images or used by a container (`hold`) stay until their last use ends.
        """
        self._notice()
        record = self._index.find(ref_or_id)
        if record is None:
            await self.collect()  # what an earlier call did not come to
            return
        if self._holds.get(record.id):
            self._index.update(replace(record, tags=(), digests=(), removed=True))
            return
        self._index.delete(record.id)
        reach("image_remove.forgotten")
        await self.collect()

    def layers(self, image_id: str) -> tuple[Path, ...]:
        """Overlay lower directories of an image, topmost first; ImageMissing when absent."""
        paths: list[Path] = []
        for chain_id in reversed(self._index.record(image_id).chain):
            paths.append(self._shop.layers.path(chain_id))
            if self._shop.layers.facts[chain_id].opaque_root:
                break
        return tuple(paths)

    def hold(self, image_id: str, owner: str) -> None:
        """Keep an image's layers for `owner` (a container ID), also if the image is removed meanwhile.

        Holds live in memory: after a restart the server holds again for every container it finds,
        then awaits `collect`. Raises ImageMissing.
        """
        self._holds.setdefault(self._index.record(image_id).id, set()).add(owner)

    def release(self, image_id: str, owner: str) -> None:
        """End a hold; unknown ones are fine. Layers nobody needs any more are removed in the background."""
        owners = self._holds.get(image_id, set())
        owners.discard(owner)
        if owners or self._holds.pop(image_id, None) is None:
            return
        if image_id in {record.id for record in self._index.records() if record.removed}:
            self._background(self.collect())

    async def collect(self) -> None:
        """Remove all that nothing refers to; to be awaited once after recovery.

        While an importer is at work beside us nothing is removed; the next call makes up for it.
        """
        async with self._collecting:
            with suppress(Busy), locked(self._shop.layers.import_lock):
                await self._collect()

    async def _collect(self) -> None:
        self._notice()
        for record in self._index.records():
            if record.removed and not self._holds.get(record.id):
                self._index.delete(record.id)
        records = tuple(self._index.records())
        needed = {digest for record in records for digest in (record.id, *record.blobs, *record.layer_blobs)}
        chains = {chain_id for record in records for chain_id in record.chain}
        for digest in [blob for blob in self._shop.blobs.sizes if blob not in needed]:
            if digest not in self._shop.in_use:
                self._shop.blobs.remove(digest)
        for chain_id in [layer for layer in self._shop.layers.facts if layer not in chains]:
            if chain_id not in self._shop.in_use:
                self._shop.layers.remove(chain_id)
        await asyncio.to_thread(self._shop.blobs.drop_partials, older_than=_PARTIAL_SECONDS)
        await self._shop.layers.sweep(keep=frozenset(self._shop.work))

    def usage(self) -> StoreUsage:
        """Bytes and inodes of the store, from its own records: no disk walk."""
        layers = self._shop.layers.facts.values()
        blobs = self._shop.blobs.sizes
        return StoreUsage(
            path=self._root,
            used_bytes=sum(blobs.values()) + sum(layer.size for layer in layers),
            inodes_used=len(blobs) + sum(layer.inodes + 3 for layer in layers),
        )

    def config_json(self, image_id: str) -> bytes:
        """The configuration document as stored, for verbose ImageStatus; ImageMissing when absent."""
        return self._shop.blobs.read(self._index.record(image_id).id, MAX_CONFIG_BYTES)

    def _image(self, record: ImageRecord) -> Image:
        return self._index.image(record, pinned=bool(self._pinned & {*record.tags, *record.digests}))

    async def _sync_soon(self) -> None:
        """Let the disk catch up, then note that these images survive a power cut."""
        if self._syncing:
            return
        self._syncing = True
        try:
            await asyncio.sleep(_SYNC_DELAY)  # pulls come in groups; one sync is enough for them
        finally:
            self._syncing = False
        waiting = [record for record in self._index.records() if record.boot]
        await asyncio.to_thread(self._sync)
        for record in waiting:
            with suppress(ImageMissing):
                self._index.update(replace(self._index.record(record.id), boot=""))

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            _LOG.warning("image store: %s", exc)


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError as exc:
        raise disk_error(exc, f"read {_BOOT_ID}") from exc
