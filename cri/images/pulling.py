"""One pull from reference to unpacked layers: resolve, choose the platform, download, unpack.

    manifest or index ─▶ manifest ─▶ configuration ─▶ per layer: download (a few at a time)
                                                            └─▶ unpack, one on each CPU

Blobs and layers that are there already are not fetched again. Downloads of the same blob and unpackings
of the same layer by other pulls are joined.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cri.images import manifest as manifests
from cri.images.blobs import BlobStore, BlobWriter
from cri.images.errors import CorruptContent, ImageError, ImageNotFound
from cri.images.imageconfig import ParsedConfig, chain_ids, parse_config
from cri.images.joint import JointTasks
from cri.images.layers import LayerStore
from cri.images.lower import ParentsNeeded
from cri.images.manifest import Descriptor, FetchedManifest, Index, Manifest, Platform
from cri.images.progress import Meter
from cri.images.reference import Reference
from cri.images.unpack import UnpackRequest
from cri.images.unpacker import unpack_layer

_UNPACKERS = max(1, min(4, os.cpu_count() or 1))


class Fetches(Protocol):
    """Where the content of an image comes from: a registry, an archive."""

    async def manifest(self, selector: str) -> FetchedManifest:
        """A manifest or index by tag or digest; PullError."""

    async def blob(self, descriptor: Descriptor, writer: BlobWriter, on_bytes: Callable[[int], None]) -> None:
        """Write a blob and commit it; `on_bytes` gets the length of each piece. PullError, StoreFull."""


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """A complete image in the store that has no record yet."""

    id: str
    top_digest: str
    """Digest of the manifest or index the reference led to."""
    manifest_digest: str
    documents: tuple[str, ...]
    """Digests of indexes, manifest and configuration."""
    layer_blobs: tuple[str, ...]
    chain: tuple[str, ...]
    size: int


@dataclass(kw_only=True)
class Workshop:
    """The parts of the store that pulls work on, and what pulls under way are using."""

    root: Path
    blobs: BlobStore
    layers: LayerStore
    platform: Platform
    downloads: int
    keep_layer_blobs: bool
    joint: JointTasks = field(default_factory=JointTasks)
    in_use: Counter[str] = field(default_factory=Counter)
    """Digests and chain IDs that garbage collection must leave alone."""
    work: set[Path] = field(default_factory=set)
    """Directories in `tmp/` under way."""
    unpacking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_UNPACKERS))

    @contextmanager
    def using(self, *digests: str) -> Iterator[None]:
        """Protect content from collection while it has no record."""
        self.in_use.update(digests)
        try:
            yield
        finally:
            self.in_use.subtract(digests)
            self.in_use += Counter()  # drops what is down to zero


class Pull:
    """One pull. `run` is called once; the caller holds `guard` until the image has its record."""

    def __init__(
        self,
        workshop: Workshop,
        ref: Reference,
        fetcher: Fetches,
        *,
        guard: ExitStack,
        meter: Meter,
    ) -> None:
        self._shop = workshop
        self._ref = ref
        self._fetcher = fetcher
        self._guard = guard
        self._meter = meter

    async def run(self) -> Pulled:
        """Bring everything in; PullError, StoreFull."""
        top = await self._fetcher.manifest(self._ref.selector)
        documents: list[str] = []
        found = top
        for left in reversed(range(manifests.MAX_INDEX_DEPTH)):
            parsed = self._parse(found)
            documents.append(await self._keep(found.data))
            if isinstance(parsed, Manifest):
                break
            if left:
                found = await self._child(parsed)
        else:
            raise CorruptContent(f"{self._ref}: indexes nest deeper than {manifests.MAX_INDEX_DEPTH}")
        config = await self._config(parsed.config)
        documents.append(parsed.config.digest)
        chain = await self._layers(parsed, config)
        return Pulled(
            id=parsed.config.digest,
            top_digest=top.digest,
            manifest_digest=found.digest,
            documents=tuple(documents),
            layer_blobs=tuple(layer.digest for layer in parsed.layers),
            chain=chain,
            size=len(found.data) + parsed.config.size + sum(layer.size for layer in parsed.layers),
        )

    def _parse(self, found: FetchedManifest) -> Manifest | Index:
        try:
            return manifests.parse_manifest(found.data, found.media_type)
        except CorruptContent as exc:
            raise CorruptContent(f"{self._ref}: {exc}") from exc

    async def _keep(self, data: bytes) -> str:
        digest = await asyncio.to_thread(self._shop.blobs.put, data)
        self._guard.enter_context(self._shop.using(digest))
        return digest

    async def _child(self, index: Index) -> FetchedManifest:
        try:
            chosen = manifests.choose(index, self._shop.platform)
        except ImageNotFound as exc:
            raise ImageNotFound(f"{self._ref}: {exc}") from exc
        if chosen.digest in self._shop.blobs:
            data = await asyncio.to_thread(self._shop.blobs.read, chosen.digest, manifests.MAX_MANIFEST_BYTES)
            return FetchedManifest(data=data, media_type=chosen.media_type, digest=chosen.digest)
        found = await self._fetcher.manifest(chosen.digest)
        if len(found.data) != chosen.size:
            raise CorruptContent(f"{self._ref}: manifest {chosen.digest} is not as long as the index says")
        return FetchedManifest(data=found.data, media_type=chosen.media_type, digest=found.digest)

    async def _config(self, descriptor: Descriptor) -> ParsedConfig:
        if descriptor.size > manifests.MAX_CONFIG_BYTES:
            raise CorruptContent(f"{self._ref}: image configuration is too large")
        self._guard.enter_context(self._shop.using(descriptor.digest))
        await self._download(descriptor)
        data = await asyncio.to_thread(self._shop.blobs.read, descriptor.digest, manifests.MAX_CONFIG_BYTES)
        try:
            parsed = parse_config(data)
        except CorruptContent as exc:
            raise CorruptContent(f"{self._ref}: {exc}") from exc
        want, has = self._shop.platform, parsed.config
        if (has.os or want.os, has.architecture or want.architecture) != (want.os, want.architecture):
            raise ImageNotFound(f"{self._ref}: image is for {has.os}/{has.architecture}, not for {want}")
        return parsed

    async def _layers(self, manifest: Manifest, config: ParsedConfig) -> tuple[str, ...]:
        if len(manifest.layers) != len(config.diff_ids):
            raise CorruptContent(f"{self._ref}: manifest and configuration disagree on the number of layers")
        chain = chain_ids(config.diff_ids)
        for digest in (*chain, *(layer.digest for layer in manifest.layers)):
            self._guard.enter_context(self._shop.using(digest))
        missing = [at for at, chain_id in enumerate(chain) if chain_id not in self._shop.layers]
        self._meter.begin({at: manifest.layers[at].size for at in missing}, len(chain))
        slots = asyncio.Semaphore(self._shop.downloads)
        tasks: list[asyncio.Task[None]] = []
        for at in missing:
            work = self._layer(
                at, chain, manifest.layers[at], config.diff_ids[at], slots=slots, below=(*tasks,)
            )
            tasks.append(asyncio.create_task(work))
        try:
            if tasks:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                for task in tasks:
                    if task.done():
                        task.result()
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
                for task in tasks:
                    if not task.cancelled():
                        task.exception()  # one failure is reported, the others are its like
        return chain

    async def _layer(
        self,
        at: int,
        chain: tuple[str, ...],
        layer: Descriptor,
        diff_id: str,
        *,
        slots: asyncio.Semaphore,
        below: tuple[asyncio.Task[None], ...],
    ) -> None:
        async with slots:
            await self._download(layer, self._meter.received)
        chain_id = chain[at]
        while chain_id not in self._shop.layers:
            try:
                await self._shop.joint.run(
                    ("layer", chain_id), lambda: self._unpack(chain[: at + 1], layer, diff_id)
                )
            except ParentsNeeded:
                if below:
                    await asyncio.gather(*below)
        if not self._shop.keep_layer_blobs:
            await asyncio.to_thread(self._shop.blobs.remove, layer.digest)
        self._meter.layer_done()

    async def _download(self, descriptor: Descriptor, on_bytes: Callable[[int], None] | None = None) -> None:
        digest = descriptor.digest
        while digest not in self._shop.blobs:
            key = ("blob", digest)
            mine = not self._shop.joint.running(key)
            try:
                await self._shop.joint.run(key, lambda: self._fetch(descriptor, on_bytes))
            except ImageError:
                if mine:
                    raise
                # Another pull's failure may be about its credentials or mirrors: try with ours.

    async def _fetch(self, descriptor: Descriptor, on_bytes: Callable[[int], None] | None) -> None:
        with self._shop.blobs.writer(descriptor.digest, descriptor.size) as writer:
            await asyncio.to_thread(writer.resume)
            count = on_bytes or (lambda _: None)
            count(writer.count)
            await self._fetcher.blob(descriptor, writer, count)

    async def _unpack(self, chain: tuple[str, ...], layer: Descriptor, diff_id: str) -> None:
        """Make the last layer of a chain.

        Layers are unpacked side by side. Most never look at those below; one that must, and finds that they
        are not all there, is begun again when they are (ParentsNeeded).
        """
        shop = self._shop
        *below, chain_id = chain
        if layer.digest not in shop.blobs:  # a damaged one was dropped, or it was not kept
            await self._download(layer)
        parents = tuple(str(shop.layers.path(lower)) for lower in reversed(below))
        async with shop.unpacking:
            work = shop.layers.begin()
            shop.work.add(work)
            try:
                applied = await unpack_layer(
                    UnpackRequest(
                        blob=str(shop.blobs.path(layer.digest)),
                        blob_digest=layer.digest,
                        blob_size=shop.blobs.sizes.get(layer.digest, layer.size),
                        diff_id=diff_id,
                        target=str(work),
                        parents=parents if all(lower in shop.layers for lower in below) else None,
                    )
                )
                shop.layers.commit(chain_id, work, applied)
            except (ParentsNeeded, asyncio.CancelledError):
                await shop.layers.discard(work)
                raise
            except ImageError as exc:
                if isinstance(exc, CorruptContent):
                    shop.blobs.remove(layer.digest)
                await shop.layers.discard(work)  # at once: the disk may be full
                raise type(exc)(f"{self._ref}: {exc}") from exc
            finally:
                shop.work.discard(work)
