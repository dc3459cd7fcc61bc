"""Packing files into an OCI image and putting it into the lab registry's store.

Images are reproducible: same input, same digests. Source: OCI image-spec manifest.md, config.md, layer.md.
"""

import gzip
import hashlib
import io
import json
import os
import platform
import stat
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from deploy.labkit.registry import RegistryStore

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_EPOCH = 1_700_000_000


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One member of an image's file map, when content alone does not say enough."""

    data: bytes = b""
    link: str = ""
    """Target: makes a symbolic link."""
    directory: bool = False
    mode: int = 0o644
    uid: int = 0
    gid: int = 0


def build_image(
    store_dir: Path,
    name: str,
    *,
    tags: Sequence[str] = ("latest",),
    files: Mapping[str, Path | bytes | Entry] | None = None,
    tree: Path | None = None,
    entrypoint: Sequence[str] = (),
    cmd: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    user: str = "",
    workdir: str = "",
    exposed: Sequence[str] = (),
    volumes: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    stop_signal: str = "",
    compression: str = "gzip",
) -> str:
    """Pack one image into the registry store and return its manifest digest.

    Args:
        store_dir: root of a `registry.RegistryStore`.
        name: full repository name, such as `docker.io/coredns/coredns`.
        tags: tags to point at it.
        files: path in the image -> `Path` (a host file, its mode kept), bytes (mode 0644), or `Entry`.
        tree: a directory that becomes the root file system; `files` are a second layer over it.
        entrypoint: start of the command line; likewise `cmd`, `env`, `user`, `workdir`, `stop_signal`.
        exposed: ports such as `80/tcp`.
        volumes: paths of anonymous volumes.
        compression: gzip, zstd or none.
    """
    store = RegistryStore(root=store_dir)
    layers = []
    if tree is not None:
        layers.append(_add_layer(store, _tree_members(tree), compression))
    if files or not layers:
        layers.append(_add_layer(store, _file_members(files or {}), compression))
    inner: dict[str, Any] = {
        "Env": [f"{key}={value}" for key, value in (env or {}).items()],
        "Entrypoint": list(entrypoint),
        "Cmd": list(cmd),
        "User": user,
        "WorkingDir": workdir,
        "ExposedPorts": {port: {} for port in exposed},
        "Volumes": {path: {} for path in volumes},
        "Labels": dict(labels or {}),
        "StopSignal": stop_signal,
    }
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {key: value for key, value in inner.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [layer["diff_id"] for layer in layers]},
        "history": [{"created_by": "nodelet lab"} for _ in layers],
    }
    document = _json(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": store.put_blob(document), "size": len(document)},
        "layers": [{key: layer[key] for key in ("mediaType", "digest", "size")} for layer in layers],
    }
    return store.put_manifest(name, _json(manifest), media_type=MANIFEST, tags=tuple(tags))


def push_directory(store_dir: Path, image_dir: Path, name: str, *, tags: Sequence[str] = ("latest",)) -> str:
    """Pack a directory with `rootfs/` and `image.toml` or `config.json` into the store; manifest digest.

    The file has the words of `build_image` as keys: entrypoint, cmd, env, user, workdir, exposed, volumes,
    labels, stop_signal. Both files may be missing. ValueError for an unknown key.
    """
    settings: dict[str, Any] = {}
    if (image_dir / "image.toml").is_file():
        settings = tomllib.loads((image_dir / "image.toml").read_text())
    elif (image_dir / "config.json").is_file():
        settings = json.loads((image_dir / "config.json").read_text())
    known = {"entrypoint", "cmd", "env", "user", "workdir", "exposed", "volumes", "labels", "stop_signal"}
    if unknown := settings.keys() - known:
        raise ValueError(f"unknown setting {sorted(unknown)[0]!r}; known: {', '.join(sorted(known))}")
    return build_image(store_dir, name, tags=tags, tree=image_dir / "rootfs", **settings)


Member = tuple[tarfile.TarInfo, BinaryIO | None]


def _file_members(files: Mapping[str, Path | bytes | Entry]) -> Iterator[Member]:
    """Tar members for a file map, parents first."""
    folders: dict[str, Entry] = {}
    for path in files:
        parts = path.strip("/").split("/")
        for end in range(1, len(parts)):
            folders["/".join(parts[:end])] = Entry(directory=True, mode=0o755)
    items: dict[str, Path | bytes | Entry] = {**folders}
    items.update({path.strip("/"): item for path, item in files.items()})
    for path in sorted(items):
        yield _member(path, items[path])


def _member(path: str, item: Path | bytes | Entry) -> Member:
    if isinstance(item, Path):
        if item.is_symlink():
            item = Entry(link=os.readlink(item))
        else:
            item = Entry(data=item.read_bytes(), mode=stat.S_IMODE(item.stat().st_mode))
    elif isinstance(item, bytes):
        item = Entry(data=item)
    info = tarfile.TarInfo(path)
    info.mtime, info.mode, info.uid, info.gid = _EPOCH, item.mode, item.uid, item.gid
    if item.directory:
        info.type = tarfile.DIRTYPE
    elif item.link:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, item.link, 0o777
    info.size = len(item.data)
    return info, io.BytesIO(item.data)


def _tree_members(tree: Path) -> Iterator[Member]:
    """Tar members for everything below a directory, sorted."""
    for path in sorted(tree.rglob("*")):
        info = tarfile.TarInfo(str(path.relative_to(tree)))
        facts = path.lstat()
        info.mtime, info.mode = int(facts.st_mtime), stat.S_IMODE(facts.st_mode)
        info.uid, info.gid = facts.st_uid, facts.st_gid
        if path.is_symlink():
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
            yield info, None
        elif path.is_dir():
            info.type = tarfile.DIRTYPE
            yield info, None
        elif path.is_file():
            info.size = facts.st_size
            with path.open("rb") as file:
                yield info, file


class _Hashing(io.RawIOBase):
    """Passes bytes on to a file and hashes them."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self._target.write(data)
        return len(data)


def _add_layer(store: RegistryStore, members: Iterator[Member], compression: str) -> dict[str, Any]:
    uploads = store.root / "uploads"
    uploads.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=uploads, delete=False) as file:
        with _compressor(file, compression) as packed:
            plain = _Hashing(packed)
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for info, data in members:
                    tar.addfile(info, data)
            plain.close()
        file.flush()
        size = file.tell()
    suffix = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}[compression]
    return {
        "mediaType": LAYER + suffix,
        "digest": store.adopt_blob(Path(file.name)),
        "size": size,
        "diff_id": "sha256:" + plain.hash.hexdigest(),
    }


class _Plain:
    """The file itself, as a context manager that leaves it open."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> Any:
        return self._file

    def __exit__(self, *_: object) -> None:
        return None


def _compressor(file: Any, compression: str) -> Any:
    if compression == "gzip":
        return gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0)
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False)
    if compression == "none":
        return _Plain(file)
    raise ValueError(f"compression {compression!r} is not gzip, zstd or none")


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
