"""What the tests of `cri.images` share: archives made byte by byte, images, a registry on a unix socket.

Not for: tests of other areas.
"""

import gzip
import hashlib
import io
import json
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from cri.images import manifest
from cri.images.apply import Applied, Applier
from cri.images.deferred import finish
from cri.images.rootdir import RootDir
from cri.images.store import ImageStore
from cri.images.tarstream import TarStream

HOST = "registry.test"
REF = f"{HOST}/team/app:1"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def header(
    name: bytes,
    *,
    kind: bytes = b"0",
    size: int = 0,
    link: bytes = b"",
    mode: int = 0o644,
    mtime: int = 1_700_000_000,
    raw_size: bytes | None = None,
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """A ustar header, right in everything the caller does not spoil."""
    block = struct.pack(
        "100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x",
        name[:100],
        b"%07o\0" % mode,
        b"%07o\0" % 0,
        b"%07o\0" % 0,
        raw_size if raw_size is not None else b"%011o\0" % size,
        b"%011o\0" % mtime,
        b" " * 8,
        kind,
        link[:100],
        b"ustar\x0000",
        b"",
        b"",
        b"%07o\0" % device[0],
        b"%07o\0" % device[1],
        b"",
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def member(name: bytes, data: bytes = b"", **fields: Any) -> bytes:
    """A header with its payload."""
    size = fields.pop("size", len(data))
    return header(name, size=size, **fields) + data + bytes(-len(data) % 512)


def pax(**records: bytes) -> bytes:
    """A PAX extension header; keyword `a__b` stands for the key `a.b`."""
    body = b""
    for key, value in records.items():
        line = b" " + key.replace("__", ".").encode() + b"=" + value + b"\n"
        length = len(line) + 1
        while len(str(length)) + len(line) != length:
            length += 1
        body += str(length).encode() + line
    return member(b"pax", body, kind=b"x")


def archive(*members: bytes) -> bytes:
    return b"".join(members) + bytes(1024)


class Bytes:
    """A tarstream.Source over bytes."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    def read(self, count: int) -> bytes:
        return self.file.read(count)

    def pieces(self, count: int) -> Iterable[memoryview]:
        data = self.read(count)
        if len(data) < count:
            raise manifest.CorruptContent("tar archive ends in the middle of a file")
        return iter((memoryview(data),))


@dataclass
class Tree:
    """A layer applied for a test: its directory and the result."""

    path: Path
    applied: Applied | None = None
    canary: Path = field(default_factory=Path)


def apply(tmp_path: Path, data: bytes, *parents: Path, name: str = "layer") -> Tree:
    """Apply an archive below `tmp_path/<name>/diff` as an unprivileged user would."""
    work = tmp_path / name
    (work / "diff").mkdir(parents=True)
    (work / "trash").mkdir()
    roots = [RootDir(path) for path in (work / "diff", work / "trash", *parents)]
    try:
        applier = Applier(roots[0], roots[1], roots[2:], privileged=False)
        applied = applier.apply(TarStream(Bytes(data)))
        finish(roots[0], applier.deferred, opaque_name="user.overlay.opaque")
    finally:
        for root in roots:
            root.close()
    return Tree(path=work / "diff", applied=applied)


@dataclass(frozen=True, kw_only=True)
class BuiltImage:
    """An image as bytes, ready to be served."""

    manifest: bytes
    config: bytes
    layers: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def id(self) -> str:
        return digest_of(self.config)

    def blobs(self) -> dict[str, bytes]:
        return {digest_of(data): data for data in (self.config, *self.layers)}


def image(
    *tars: bytes, config: dict[str, Any] | None = None, compress: Callable[[bytes], bytes] = gzip.compress
) -> BuiltImage:
    """An OCI image of this machine's platform with the given layers, lowest first."""
    packed = tuple(compress(tar) for tar in tars)
    document = {
        "architecture": manifest.this_platform().architecture,
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
    }
    config_data = json.dumps(document).encode()
    body = {
        "schemaVersion": 2,
        "mediaType": manifest.OCI_MANIFEST,
        "config": descriptor(config_data, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(data, "application/vnd.oci.image.layer.v1.tar+gzip") for data in packed],
    }
    return BuiltImage(manifest=json.dumps(body).encode(), config=config_data, layers=packed)


def descriptor(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


@dataclass
class FakeRegistry:
    """A registry that answers from memory, notes every request, and can be told to misbehave.

    `hooks` maps a path suffix to a handler that takes the request's place; None from it means "as usual".
    """

    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    hooks: dict[str, Callable[[web.Request], Any]] = field(default_factory=dict)
    requests: list[web.Request] = field(default_factory=list)

    def add(self, built: BuiltImage, *tags: str) -> None:
        self.blobs.update(built.blobs())
        for selector in (*tags, built.digest):
            self.manifests[selector] = (built.manifest, manifest.OCI_MANIFEST)

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        for suffix, hook in self.hooks.items():
            if request.path.endswith(suffix):
                answer = await hook(request)
                if answer is not None:
                    return answer
        selector = request.path.rpartition("/")[2]
        if "/manifests/" in request.path and selector in self.manifests:
            data, media_type = self.manifests[selector]
            return web.Response(body=data, content_type=media_type)
        if "/blobs/" in request.path and selector in self.blobs:
            data = self.blobs[selector]
            start = request.http_range.start or 0
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
            return web.Response(status=206 if start else 200, body=data[start:], headers=headers)
        error = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
        return web.json_response(error, status=404)


@asynccontextmanager
async def on_socket(app: web.Application, folder: Path) -> AsyncIterator[Callable[[float], Any]]:
    """Serve an application on a unix socket; gives a session factory that takes every host there."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    path = str(folder / "registry.sock")
    await web.UnixSite(runner, path).start()
    try:
        yield lambda timeout: aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_read=timeout),
        )
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(fake: FakeRegistry, folder: Path) -> AsyncIterator[Callable[[float], Any]]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.handle)
    async with on_socket(app, folder) as factory:
        yield factory


@asynccontextmanager
async def opened_store(
    folder: Path, session: Callable[[float], Any] | None, **options: Any
) -> AsyncIterator[ImageStore]:
    """A store whose every registry is plain http, which for `session` means the unix socket."""
    certs = folder / "registries"
    for host in (HOST, "docker.io", "_default"):
        (certs / host).mkdir(parents=True, exist_ok=True)
        name = HOST if host == "_default" else host
        (certs / host / "hosts.toml").write_text(f'server = "http://{name}"\n')
    store = ImageStore(
        folder / "images", registry_config_dir=certs, session=session, sync=lambda: None, **options
    )
    await store.open()
    try:
        yield store
    finally:
        await store.close()


BASE = archive(member(b"bin/", kind=b"5", mode=0o755), member(b"bin/sh", b"#!" * 2000, mode=0o755))
TOP = archive(member(b"etc/motd", b"hello"))


@pytest.fixture
def built():
    """An image of two layers, BASE and TOP."""
    return image(BASE, TOP, config={"Env": ["A=1"], "Cmd": ["sh"]})


@pytest.fixture
async def fake(built):
    """A registry that has it as REF."""
    registry = FakeRegistry()
    registry.add(built, "1")
    return registry


@pytest.fixture
async def store(tmp_path, fake):
    """An empty store beside that registry."""
    async with serving(fake, tmp_path) as session, opened_store(tmp_path, session) as opened:
        yield opened


def leftovers(store: ImageStore) -> list[str]:
    """What a pull has left half done."""
    return [path.name for path in (store._root / "tmp").iterdir()]
