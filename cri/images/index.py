"""The index: one record a file for every image, and the names that lead to it.

Names live in the records, so there is no second place that could disagree; the maps from name to image
are built in memory. A tag belongs to one image: whoever takes it last has it (pulling a moved tag leaves
the old image with its digests only).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cri.images import reference
from cri.images.blobs import BlobStore, disk_error
from cri.images.errors import ImageError, ImageMissing
from cri.images.imageconfig import parse_config
from cri.images.manifest import MAX_CONFIG_BYTES
from cri.images.model import Image, ImageConfig
from host.errors import InputError
from host.files import CorruptRecord, quarantine, read_record, write_record

_KIND = "image"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """An image as it is written down."""

    id: str
    """Digest of the configuration."""
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()
    """Manifest, indexes that led to it, configuration."""
    manifest: str = ""
    layer_blobs: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()
    """Chain IDs, lowest first."""
    size: int = 0
    pulled_at: float = 0.0
    removed: bool = False
    """True: only a container's hold keeps its layers."""
    boot: str = ""
    """The boot during which it was written, while the disk may not have everything yet; else empty."""


class ImageIndex:
    """All image records below `root/images`. Methods block and are quick."""

    def __init__(self, root: Path, blobs: BlobStore) -> None:
        self._dir = root / "images"
        self._blobs = blobs
        self._records: dict[str, ImageRecord] = {}
        self._configs: dict[str, ImageConfig] = {}
        self._names: dict[str, str] = {}
        self._stamp = -1

    def load(self, boot: str) -> tuple[str, ...]:
        """Read every record and return complaints, for the log.

        Records the previous boot did not live to see synced are dropped; unreadable ones are moved aside.
        """
        self._dir.mkdir(mode=0o700, exist_ok=True)
        self._stamp = self._dir.stat().st_mtime_ns
        complaints = []
        self._records, self._names = {}, {}
        for file in sorted(self._dir.glob("*.json")):
            try:
                record = _decode(read_record(file, kind=_KIND, version=_VERSION))
                if record.boot and record.boot != boot:
                    file.unlink()
                    complaints.append(f"image {record.id} was not fully written when the machine went down")
                    continue
                self._adopt(record)
            except (CorruptRecord, ImageError, InputError) as exc:
                quarantine(file)
                complaints.append(f"image record {file.name} is unusable: {exc}")
        return tuple(complaints)

    def changed(self) -> bool:
        """Whether a record was written or removed, by anybody, since the last `load`."""
        return self._dir.stat().st_mtime_ns != self._stamp

    def records(self) -> Iterator[ImageRecord]:
        """Every record, removed ones included, by ID."""
        return iter([self._records[image_id] for image_id in sorted(self._records)])

    def record(self, image_id: str) -> ImageRecord:
        """The record of an ID; ImageMissing."""
        try:
            return self._records[image_id]
        except KeyError:
            raise ImageMissing(f"image {image_id} is not in the store") from None

    def find(self, ref_or_id: str) -> ImageRecord | None:
        """The record that a reference, ID or unique ID prefix means; None for none."""
        digits = reference.parse_id(ref_or_id)
        if digits:
            prefix = f"sha256:{digits}"
            if len(digits) == 64:
                matches = [prefix] if prefix in self._records else []
            else:
                matches = [image_id for image_id in self._records if image_id.startswith(prefix)]
            matches = [image_id for image_id in matches if not self._records[image_id].removed]
            if len(matches) == 1:
                return self._records[matches[0]]
        try:
            name = str(reference.parse(ref_or_id))
        except InputError:
            return None
        image_id = self._names.get(name, "")
        return self._records.get(image_id)

    def image(self, record: ImageRecord, *, pinned: bool) -> Image:
        """A record as CRI sees it."""
        return Image(
            id=record.id,
            repo_tags=record.tags,
            repo_digests=record.digests,
            size=record.size,
            config=self._configs[record.id],
            pinned=pinned,
            pulled_at=record.pulled_at,
        )

    def add(self, new: ImageRecord) -> ImageRecord:
        """Write an image down, with the names it gains and those an earlier record of it had."""
        old = self._records.get(new.id)
        if old is not None and not old.removed:
            new = replace(
                new,
                tags=_union(old.tags, new.tags),
                digests=_union(old.digests, new.digests),
                blobs=_union(old.blobs, new.blobs),
            )
        for tag in new.tags:
            owner = self._records.get(self._names.get(tag, ""))
            if owner is not None and owner.id != new.id:
                self.update(replace(owner, tags=tuple(name for name in owner.tags if name != tag)))
        self.update(new)
        return new

    def update(self, record: ImageRecord) -> None:
        """Write a changed record; memory changes only after the disk has."""
        try:
            write_record(self._file(record.id), asdict(record), kind=_KIND, version=_VERSION)
        except OSError as exc:
            raise disk_error(exc, f"image record {record.id}") from exc
        self._adopt(record)

    def delete(self, image_id: str) -> None:
        """Remove a record; an absent one is fine."""
        self._file(image_id).unlink(missing_ok=True)
        self._drop_names(image_id)
        self._records.pop(image_id, None)
        self._configs.pop(image_id, None)

    def _adopt(self, record: ImageRecord) -> None:
        if record.id not in self._configs:
            data = self._blobs.read(record.id, MAX_CONFIG_BYTES)
            self._configs[record.id] = parse_config(data).config
        self._drop_names(record.id)
        self._records[record.id] = record
        if not record.removed:
            self._names.update(dict.fromkeys((*record.tags, *record.digests), record.id))

    def _drop_names(self, image_id: str) -> None:
        old = self._records.get(image_id)
        for name in (*old.tags, *old.digests) if old else ():
            if self._names.get(name) == image_id:
                del self._names[name]

    def _file(self, image_id: str) -> Path:
        return self._dir / f"{reference.parse_digest(image_id).removeprefix('sha256:')}.json"


def _union(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({*old, *new}))


def _decode(data: Any) -> ImageRecord:
    try:
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        record = ImageRecord(**fields)
    except (AttributeError, TypeError) as exc:
        raise InputError("fields are not those of an image record") from exc
    for digest in (record.id, *record.blobs, *record.layer_blobs, *record.chain):
        reference.parse_digest(digest)
    return record
