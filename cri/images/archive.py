"""Images as files: `docker save` archives and OCI layouts in, OCI layouts (that Docker reads too) out.

An archive is read once, front to back, by the same bounded tar parser as layers. Every file that may be
content goes into the blob store under its own digest; then the image is taken from there exactly as if a
registry had sent it, with all the checks of a pull. Source: OCI image-spec image-layout.md; Docker
"image.Save" format (manifest.json).
"""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from cri.images import manifest as manifests
from cri.images import reference
from cri.images.blobs import BlobStore, BlobWriter
from cri.images.decompress import Hashed, LayerSource, chunks
from cri.images.errors import CorruptContent, ImageNotFound
from cri.images.manifest import Descriptor, FetchedManifest, Index
from cri.images.model import Image
from cri.images.store import ImageStore
from cri.images.tarstream import FILE, TarStream
from host.errors import InputError

_MAX_FILES = 10_000
_MAX_ARCHIVE = 256 << 30
_NAME_KEYS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar"


async def import_archive(store: ImageStore, file: BinaryIO, *, name: str = "") -> tuple[Image, ...]:
    """Bring every image of an archive into the store.

    Args:
        store: opened, usually shared.
        file: the archive, plain or compressed.
        name: reference for an image that has none in the archive.

    Raises CorruptContent, ImageNotFound (no image for this machine), StoreFull, InputError (no name).
    """
    files = _take_in(store.blobs, file)
    source = _ArchiveSource(store.blobs)
    images = []
    for digest, refs in _images(store.blobs, files):
        for ref in refs or [name]:
            if not ref:
                raise InputError("the archive's image has no name: give it one with --name")
            parsed = reference.parse(ref)
            source.point(str(parsed), digest)
            images.append(await store.adopt(parsed, source.for_name(str(parsed))))
    if not images:
        raise CorruptContent("archive holds neither manifest.json nor index.json with an image")
    return tuple(images)


class _ArchiveSource:
    """Serves a pull from blobs that are in the store already."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._names: dict[str, str] = {}
        self._name = ""

    def point(self, name: str, digest: str) -> None:
        """Note what a full reference stands for."""
        self._names[name] = digest

    def for_name(self, name: str) -> "_ArchiveSource":
        """The source that resolves any tag to what `name` stands for."""
        self._name = name
        return self

    async def manifest(self, selector: str) -> FetchedManifest:
        """A manifest by digest, or that of the current name."""
        digest = selector if reference.is_digest(selector) else self._names[self._name]
        if digest not in self._blobs:
            raise ImageNotFound(f"archive lacks manifest {digest}")
        data = self._blobs.read(digest, manifests.MAX_MANIFEST_BYTES)
        return FetchedManifest(data=data, media_type="", digest=digest)

    async def blob(self, descriptor: Descriptor, writer: BlobWriter, on_bytes: Callable[[int], None]) -> None:
        """Only asked for what the archive did not have."""
        raise ImageNotFound(f"archive lacks blob {descriptor.digest}")


def _take_in(blobs: BlobStore, file: BinaryIO) -> dict[str, str]:
    """Store every file of an archive; path -> digest. Links (docker save repeats layers so) are followed."""
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    with LayerSource(chunks(Hashed(file)), max_bytes=_MAX_ARCHIVE) as source:
        stream = TarStream(source)
        for entry in stream:
            path = _joined("", entry.name)
            if entry.link:
                base = "" if entry.kind == b"1" else path.rpartition("/")[0]
                links[path] = _joined(base, entry.link)
            if entry.kind != FILE:
                continue
            with blobs.capture() as writer:
                for piece in stream.payload():
                    writer.write(piece)
                writer.commit()
            files[path] = writer.digest
            if len(files) + len(links) > _MAX_FILES:
                raise CorruptContent(f"archive has more than {_MAX_FILES} files")
        source.finish()
    files.update({path: files[target] for path, target in links.items() if target in files})
    return files


def _joined(base: str, name: bytes) -> str:
    parts = base.split("/") if base else []
    for part in name.decode(errors="replace").split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _images(blobs: BlobStore, files: dict[str, str]) -> list[tuple[str, list[str]]]:
    """Manifest digests with the names each has in the archive."""
    if "manifest.json" in files:
        data = blobs.read(files["manifest.json"], manifests.MAX_MANIFEST_BYTES)
        return [_docker_image(blobs, files, item) for item in _list_of_objects(data)]
    if "index.json" not in files:
        return []
    data = blobs.read(files["index.json"], manifests.MAX_MANIFEST_BYTES)
    index = manifests.parse_manifest(data)
    if not isinstance(index, Index):
        raise CorruptContent("archive: index.json is not an index")
    entries = manifests.decode_json(data, "index.json")["manifests"]
    found = []
    for descriptor, entry in zip(index.manifests, entries, strict=True):
        annotations = entry.get("annotations")
        names = [annotations.get(key) for key in _NAME_KEYS] if isinstance(annotations, dict) else []
        found.append((descriptor.digest, [ref for ref in names if isinstance(ref, str) and ":" in ref][:1]))
    return found


def _docker_image(blobs: BlobStore, files: dict[str, str], item: Any) -> tuple[str, list[str]]:
    config, layers, tags = item.get("Config"), item.get("Layers"), item.get("RepoTags") or []
    paths = [config, *layers] if isinstance(layers, list) else []
    if not paths or not all(isinstance(path, str) and path in files for path in paths):
        raise CorruptContent("archive: manifest.json names files that are not there")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise CorruptContent("archive: manifest.json has malformed RepoTags")
    document = {
        "schemaVersion": 2,
        "mediaType": manifests.DOCKER_MANIFEST,
        "config": _described(blobs, files[config], _CONFIG_TYPE),
        "layers": [_described(blobs, files[path], _LAYER_TYPE) for path in layers],
    }
    data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    return blobs.put(data), tags


def _list_of_objects(data: bytes) -> list[dict[str, Any]]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise CorruptContent("archive: manifest.json is not JSON") from exc
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise CorruptContent("archive: manifest.json is not a list of images")
    return value


def _described(blobs: BlobStore, digest: str, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": blobs.sizes[digest]}


def export_archive(store: ImageStore, image: Image, target: Path) -> None:
    """Write an image as an OCI layout in a tar file that `docker load` and `import_archive` read.

    Raises ImageNotFound when the compressed layers were not kept.
    """
    top, digests = store.document(image.id)
    for digest in digests:
        if digest not in store.blobs:
            raise ImageNotFound(f"image {image.id}: blob {digest} was not kept; pull it with blobs kept")
    manifest = json.loads(store.blobs.read(top, manifests.MAX_MANIFEST_BYTES))
    names = list(image.repo_tags)
    descriptor = {
        "mediaType": manifest.get("mediaType", manifests.OCI_MANIFEST),
        "digest": top,
        "size": store.blobs.sizes[top],
    }
    entries = [{**descriptor, "annotations": {_NAME_KEYS[0]: name}} for name in names] or [descriptor]
    docker = {
        "Config": _blob_name(image.id),
        "RepoTags": names,
        "Layers": [_blob_name(layer["digest"]) for layer in manifest["layers"]],
    }
    index = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": entries}
    with tarfile.open(target, "x") as tar:
        _add(tar, "oci-layout", {"imageLayoutVersion": "1.0.0"})
        _add(tar, "index.json", index)
        _add(tar, "manifest.json", [docker])
        for digest in digests:
            tar.add(store.blobs.path(digest), _blob_name(digest), recursive=False)


def _blob_name(digest: str) -> str:
    return digest.replace("sha256:", "blobs/sha256/")


def _add(tar: tarfile.TarFile, name: str, value: Any) -> None:
    data = json.dumps(value).encode()
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
