"""A small OCI registry for labs and tests: pull, push, mirror of everything.

Start it with `python -m deploy.labkit.registry --root DIR --listen ADDR:PORT` from the checkout, or
in-process with `serve`. It speaks the OCI distribution API (v2) without TLS. Repositories keep their
full name (`docker.io/library/busybox`); a request for `/v2/library/busybox/…?ns=docker.io`, as
containerd's mirrors send it, finds the same. Not for production: nothing is ever deleted.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import os
import re
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:-]*(?:/[a-z0-9][a-z0-9._-]*)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_MAX_MANIFEST = 4 << 20
_READ = 1 << 20

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, kw_only=True)
class RegistryStore:
    """Content of a registry; methods block.

        blobs/sha256/<hex>
        repos/<name>/_manifests/<hex>     the media type of a manifest
        repos/<name>/_tags/<tag>          the digest of a manifest

    Args:
        root: directory; made when missing.
    """

    root: Path

    def blob_path(self, digest: str) -> Path:
        """Where a blob is or would be; ValueError for a malformed digest."""
        if not _DIGEST.match(digest):
            raise ValueError(f"{digest!r} is not a sha256 digest")
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def put_blob(self, data: bytes) -> str:
        """Store bytes and return their digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        path = self.blob_path(digest)
        if not path.exists():
            _write(path, data)
        return digest

    def adopt_blob(self, file: Path) -> str:
        """Move a file of the same file system into the store and return its digest."""
        with file.open("rb") as stream:
            digest = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
        path = self.blob_path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.rename(path)
        return digest

    def put_manifest(self, name: str, data: bytes, *, media_type: str, tags: tuple[str, ...] = ()) -> str:
        """Store a manifest or index, point tags at it, and return its digest."""
        digest = self.put_blob(data)
        _write(self._repo(name) / "_manifests" / digest.removeprefix("sha256:"), media_type.encode())
        for tag in tags:
            if not _TAG.match(tag):
                raise ValueError(f"{tag!r} is not a tag")
            _write(self._repo(name) / "_tags" / tag, digest.encode())
        return digest

    def resolve(self, name: str, selector: str) -> tuple[str, str] | None:
        """Digest and media type of a tag or digest of a repository; None when unknown."""
        digest = selector
        if not _DIGEST.match(selector):
            if not _TAG.match(selector):
                return None
            file = self._repo(name) / "_tags" / selector
            digest = file.read_text() if file.is_file() else ""
        record = self._repo(name) / "_manifests" / digest.removeprefix("sha256:")
        if not _DIGEST.match(digest) or not record.is_file():
            return None
        return digest, record.read_text()

    def tags(self, name: str) -> list[str]:
        """Tags of a repository, sorted."""
        folder = self._repo(name) / "_tags"
        return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []

    def repositories(self) -> list[str]:
        """Names of all repositories, sorted."""
        top = self.root / "repos"
        return sorted(str(folder.parent.relative_to(top)) for folder in top.rglob("_manifests"))

    def candidates(self, name: str, ns: str) -> Iterator[str]:
        """Full names a requested repository may mean, likeliest first."""
        if ns:
            yield f"{ns}/{name}"
        yield name
        if not ns:
            yield f"docker.io/{name}"
            yield f"docker.io/library/{name}"
            yield from (full for full in self.repositories() if full.endswith(f"/{name}"))

    def _repo(self, name: str) -> Path:
        if not _NAME.match(name) or ".." in name.split("/"):
            raise ValueError(f"{name!r} is not a repository name")
        return self.root / "repos" / name


@dataclass(kw_only=True)
class _Registry:
    store: RegistryStore
    accounts: Mapping[str, str] = field(default_factory=dict)
    """User -> password; when not empty, everything below `private` needs one of them."""
    private: tuple[str, ...] = ()
    """Prefixes of full repository names that need an account."""

    def application(self) -> web.Application:
        app = web.Application(client_max_size=_MAX_MANIFEST, middlewares=[self._guard])
        app.router.add_get("/v2/", self._ping)
        app.router.add_get("/v2/_catalog", self._catalog)
        app.router.add_get("/v2/{name:.+}/tags/list", self._tags)
        app.router.add_get("/v2/{name:.+}/manifests/{selector}", self._manifest)
        app.router.add_put("/v2/{name:.+}/manifests/{selector}", self._put_manifest)
        app.router.add_get("/v2/{name:.+}/blobs/{digest:sha256:[0-9a-f]+}", self._blob)
        app.router.add_post("/v2/{name:.+}/blobs/uploads/", self._begin_upload)
        app.router.add_patch("/v2/{name:.+}/blobs/uploads/{upload:[0-9a-f]+}", self._append)
        app.router.add_put("/v2/{name:.+}/blobs/uploads/{upload:[0-9a-f]+}", self._finish)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if self._needs_account(request) and not self._has_account(request):
                answer = _error(401, "UNAUTHORIZED", "authentication required")
                answer.headers["WWW-Authenticate"] = 'Basic realm="lab registry"'
                return answer
            return await handler(request)
        except ValueError as exc:
            return _error(400, "NAME_INVALID", str(exc))

    def _needs_account(self, request: web.Request) -> bool:
        name = request.match_info.get("name", "")
        if not self.accounts or not name:
            return False
        names = self.store.candidates(name, request.query.get("ns", ""))
        return any(full.startswith(self.private) for full in names)

    def _has_account(self, request: web.Request) -> bool:
        scheme, _, word = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return False
        user, _, password = base64.b64decode(word).decode(errors="replace").partition(":")
        return secrets.compare_digest(self.accounts.get(user, "\0").encode(), password.encode())

    async def _ping(self, _: web.Request) -> web.Response:
        return web.json_response({}, headers={"Docker-Distribution-API-Version": "registry/2.0"})

    async def _catalog(self, _: web.Request) -> web.Response:
        return web.json_response({"repositories": self.store.repositories()})

    async def _tags(self, request: web.Request) -> web.Response:
        for name in self.store.candidates(request.match_info["name"], request.query.get("ns", "")):
            if tags := self.store.tags(name):
                return web.json_response({"name": name, "tags": tags})
        return _error(404, "NAME_UNKNOWN", "repository name not known to registry")

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        selector = request.match_info["selector"]
        for name in self.store.candidates(request.match_info["name"], request.query.get("ns", "")):
            found = self.store.resolve(name, selector)
            if found:
                digest, media_type = found
                data = self.store.blob_path(digest).read_bytes()
                headers = {"Docker-Content-Digest": digest, "Content-Type": media_type}
                return web.Response(body=data, headers=headers)
        return _error(404, "MANIFEST_UNKNOWN", "manifest unknown")

    async def _put_manifest(self, request: web.Request) -> web.Response:
        selector = request.match_info["selector"]
        media_type = request.headers.get("Content-Type", "")
        data = await request.read()
        tags = () if _DIGEST.match(selector) else (selector,)
        name = _full_name(request)
        digest = self.store.put_manifest(name, data, media_type=media_type, tags=tags)
        where = f"/v2/{request.match_info['name']}/manifests/{digest}"
        return web.Response(status=201, headers={"Docker-Content-Digest": digest, "Location": where})

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        path = self.store.blob_path(digest)
        if not path.is_file():
            return _error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        headers = {"Docker-Content-Digest": digest, "Content-Type": "application/octet-stream"}
        return web.FileResponse(path, headers=headers, chunk_size=_READ)

    async def _begin_upload(self, request: web.Request) -> web.Response:
        upload = secrets.token_hex(16)
        self._upload_path(upload).parent.mkdir(parents=True, exist_ok=True)
        self._upload_path(upload).touch()
        if "digest" in request.query:
            return await self._receive(request, upload, final=True)
        return web.Response(status=202, headers=self._upload_headers(request, upload))

    async def _append(self, request: web.Request) -> web.Response:
        return await self._receive(request, request.match_info["upload"], final=False)

    async def _finish(self, request: web.Request) -> web.Response:
        return await self._receive(request, request.match_info["upload"], final=True)

    async def _receive(self, request: web.Request, upload: str, *, final: bool) -> web.Response:
        path = self._upload_path(upload)
        if not path.is_file():
            return _error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        with path.open("ab") as file:
            async for piece in request.content.iter_chunked(_READ):
                await asyncio.to_thread(file.write, piece)
        if not final:
            return web.Response(status=202, headers=self._upload_headers(request, upload))
        digest = await asyncio.to_thread(self.store.adopt_blob, path)
        if digest != request.query.get("digest"):
            return _error(400, "DIGEST_INVALID", f"content has digest {digest}")
        where = f"/v2/{request.match_info['name']}/blobs/{digest}"
        return web.Response(status=201, headers={"Docker-Content-Digest": digest, "Location": where})

    def _upload_headers(self, request: web.Request, upload: str) -> dict[str, str]:
        size = self._upload_path(upload).stat().st_size
        where = f"/v2/{request.match_info['name']}/blobs/uploads/{upload}"
        return {"Location": where, "Range": f"0-{max(size - 1, 0)}", "Docker-Upload-UUID": upload}

    def _upload_path(self, upload: str) -> Path:
        return self.store.root / "uploads" / upload


def _full_name(request: web.Request) -> str:
    ns = request.query.get("ns", "")
    name = request.match_info["name"]
    return f"{ns}/{name}" if ns else name


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": message}]}, status=status)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temp.write_bytes(data)
    temp.rename(path)


def application(
    root: Path, *, accounts: Mapping[str, str] | None = None, private: tuple[str, ...] = ()
) -> web.Application:
    """The registry as an aiohttp application, to be served on whatever socket; see `serve`."""
    root.mkdir(parents=True, exist_ok=True)
    store = RegistryStore(root=root)
    return _Registry(store=store, accounts=accounts or {}, private=private).application()


async def serve(
    root: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 5000,
    accounts: Mapping[str, str] | None = None,
    private: tuple[str, ...] = (),
) -> web.AppRunner:
    """Serve the store below `root` until the returned runner's `cleanup()` is awaited.

    Args:
        root: see `RegistryStore`.
        host: address to listen on.
        port: TCP port; with 0 the runner's `addresses[0]` holds the one that was chosen.
        accounts: user -> password.
        private: prefixes of full repository names that need an account.
    """
    app = await asyncio.to_thread(application, root, accounts=accounts, private=private)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner


async def _run(arguments: argparse.Namespace) -> None:
    host, _, port = arguments.listen.rpartition(":")
    accounts = dict(item.split(":", 1) for item in arguments.account)
    runner = await serve(
        arguments.root,
        host=host.strip("[]"),
        port=int(port),
        accounts=accounts,
        private=tuple(arguments.private),
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(json.dumps({"listening": runner.addresses, "pid": os.getpid()}), flush=True)
    await stop.wait()
    await runner.cleanup()


def main(argv: list[str] | None = None) -> int:
    """Command line of the registry."""
    parser = argparse.ArgumentParser(prog="registry", description="a small OCI registry for labs and tests")
    parser.add_argument("--root", type=Path, required=True, help="directory of the content")
    parser.add_argument("--listen", default="127.0.0.1:5000", metavar="ADDR:PORT")
    parser.add_argument("--account", action="append", default=[], metavar="USER:PASSWORD")
    parser.add_argument(
        "--private", action="append", default=[], metavar="PREFIX", help="repositories that need an account"
    )
    asyncio.run(_run(parser.parse_args(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
