"""Hostile registries and archives against the whole of it: sandbox, real sockets, memory.

Where each rule about images and registries is tested; without a folder: here.

    CVE-2026-53488   labels and annotations inert    unit/test_images_manifest: test_config_fields
                                                     unit/test_images_store: test_foreign_layer_addresses…
    CVE-2026-94603…  checkpoint images refused       unit/test_images_manifest: test_malformed_configs…
    CVE-2026-57231   Env without "="                 unit/test_images_manifest: test_config_fields
    CVE-2022-23648   VOLUME traversal                unit/test_images_manifest: test_config_fields
                                                     test_a_volume_through_a_link_stays_inside
    CVE-2021-32760   chmod, races while unpacking    test_the_corpus…, unit/test_images_apply: ESCAPES
    CVE-2025-47290                                   root/test_images_unpack: test_the_unpack_worker…
    CVE-2026-95838   repeated opaque whiteouts       unit/test_images_apply: test_opaque_storm…
    CVE-2026-53493   graphs of indexes               unit/test_images_store: test_a_graph_of_indexes…
    CVE-2026-95839   malformed digests               unit/test_images_reference
    CVE-2024-3727    digests in paths                unit/test_images_reference, _manifest: REFUSED
    CVE-2021-41190   manifest and index at once      unit/test_images_manifest: REFUSED
    CVE-2020-15157   credentials, redirects, urls    unit/test_images_wire: test_redirects…,
                                                     test_another_port…; _store: test_foreign_layer…
                     token services                  unit/test_images_hosts: test_token_services…
    CVE-2026-92543   fall back to plain http         test_no_tls_is_no_reason_for_plain_http
    CVE-2017-14992,  bombs, endless answers          test_bombs…, test_endless_answers…
    CVE-2023-25153                                   (CVE-2026-21441, -97689: urllib3 is not used)
    7b11d6cae        secrets in logs and errors      unit/test_images_wire: test_secrets_reach_no_log…
    CVE-2025-4517…   tarfile's filters               unit/test_images_tar: SPOILED; tarfile only writes
                                                     (unit/test_codebase: test_one_door…)
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from images_kit import archive, digest_of, header, member, pax
from isolation import throw_away_namespaces

from cri.images.errors import CorruptContent, ImageError
from cri.images.unpack import UnpackRequest
from cri.images.unpacker import unpack_layer

__all__ = ["throw_away_namespaces"]

LINK, SYMLINK, CHAR, BLOCK, DIR, FIFO = b"1", b"2", b"3", b"4", b"5", b"6"
UP = b"../" * 12


def _long_chain() -> list[bytes]:
    """CVE-2025-4517: links whose expansion is longer than PATH_MAX, and then a file through them."""
    folder = b"d" * 247
    members, path = [], b""
    for letter in b"abcdefghijklmnop":
        members.append(
            member(path + folder + b"/", kind=DIR, mode=0o755) if not path else _deep(path + folder)
        )
        members.append(_deep_link(path + bytes((letter,)), folder))
        path += bytes((letter,)) + b"/"
    return [*members, _deep_link(path + b"l" * 200, UP), _deep(path + b"l" * 200 + b"/evil", DIR)]


def _deep(path: bytes, kind: bytes = DIR) -> bytes:
    return pax(path=path) + member(b"long", kind=kind, mode=0o755)


def _deep_link(path: bytes, target: bytes) -> bytes:
    return pax(path=path, linkpath=target) + member(b"long", kind=SYMLINK)


CORPUS: dict[str, list[bytes]] = {
    "dots": [member(UP + b"evil", b"x")],
    "absolute": [member(b"/evil", b"x")],
    "link to the canary": [member(b"l", kind=SYMLINK, link=b"CANARY"), member(b"l/evil", b"x")],
    "link chain beyond PATH_MAX": _long_chain(),
    "hard link out": [member(b"h", kind=LINK, link=UP + b"etc/passwd")],
    "hard link by a link": [
        member(b"l", kind=SYMLINK, link=b"CANARY"),
        member(b"h", kind=LINK, link=b"l/alive"),
        member(b"h", b"evil"),
    ],
    "hard link to a whiteout": [member(b".wh.a"), member(b"h", kind=LINK, link=b"a")],
    "hard link to itself": [member(b"h", kind=LINK, link=b"h")],
    "file over a link and back": [
        member(b"l", kind=SYMLINK, link=b"CANARY"),
        member(b"l", b"x"),
        member(b"l", kind=SYMLINK, link=b"CANARY"),
        member(b"l/.", kind=DIR, mode=0o777),
    ],
    "chmod through a link": [
        member(b"l", kind=SYMLINK, link=b"CANARY"),
        pax(mtime=b"1", uid=b"7") + member(b"l/", kind=DIR, mode=0o777),
    ],
    "whiteout of the canary": [member(b"l", kind=SYMLINK, link=b"CANARY"), member(b"l/.wh.alive")],
    "whiteout of the parent": [member(b"a/.wh...")],
    "whiteout of the root": [member(b".wh.")],
    "opaque canary": [member(b"l", kind=SYMLINK, link=b"CANARY"), member(b"l/.wh..wh..opq")],
    "aufs whiteouts": [member(b".wh..wh.plnk"), member(b".wh..wh.aufs", b"x"), member(b".wh..wh..opq")],
    "devices": [
        member(b"sda", kind=BLOCK, device=(8, 0), mode=0o666),
        member(b"fifo", kind=FIFO),
        member(b"l", kind=SYMLINK, link=b"CANARY"),
        member(b"l/alive", kind=CHAR, device=(1, 3), mode=0o666),
    ],
    "overlay marks": [
        pax(SCHILY__xattr__trusted__overlay__redirect=b"/") + member(b"d/", kind=DIR, mode=0o755),
        pax(SCHILY__xattr__trusted__overlay__metacopy=b"") + member(b"f", b"x", mode=0o4755),
    ],
    "long name of 1 GB": [header(b"l", kind=b"L", size=1 << 30), bytes(4096)],
    "sparse": [member(b"f", kind=b"S"), member(b"g", b"x")],
    "negative size": [member(b"f", raw_size=b"\xff" * 12)],
    "size overflow": [member(b"f", raw_size=b"\x80" + b"\x7f" * 11)],
    "10,000 folders deep": [_deep(b"a/" * 10_000)],
    "100,000 entries": [member(b"f%d" % number) for number in range(100_000)],
    "not an archive": [os.urandom(4096)],
}


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A folder outside; the test fails when anything in it or about it has changed."""

    def facts() -> list[object]:
        found = [outside, *sorted(outside.rglob("*"))]
        stats = [path.lstat() for path in found]
        kept = [
            (item.st_mode, item.st_uid, item.st_nlink, item.st_mtime_ns, item.st_ctime_ns) for item in stats
        ]
        return [found, kept, (outside / "alive").read_bytes(), sorted(os.listdir("/"))]

    outside = tmp_path / "canary"
    outside.mkdir(mode=0o755)
    (outside / "alive").write_text("alive")
    before = facts()
    yield outside
    assert facts() == before


async def unpack(tmp_path: Path, blob: bytes, diff_id: str = "") -> Path:
    """A layer unpacked as the daemon does it; its directory."""
    (tmp_path / "blob").write_bytes(blob)
    for name in ("diff", "trash"):
        (tmp_path / "layer" / name).mkdir(parents=True)
    request = UnpackRequest(
        blob=str(tmp_path / "blob"),
        blob_digest=digest_of(blob),
        blob_size=len(blob),
        diff_id=diff_id or digest_of(blob),
        target=str(tmp_path / "layer"),
    )
    await unpack_layer(request)
    return tmp_path / "layer/diff"


@pytest.mark.parametrize("members", CORPUS.values(), ids=CORPUS.keys())
async def test_the_corpus_touches_nothing_outside(tmp_path, canary, members):
    """Each is unpacked inside or refused as corrupt; nothing outside changes."""
    where = os.fsencode(canary)
    data = archive(*members)
    if b"CANARY" in data:
        data = archive(*(_pointed(piece, where) for piece in members))
    with suppress(CorruptContent):
        path = await unpack(tmp_path, data)
        assert not any(
            name.startswith(("trusted.", "security.")) and name != "trusted.overlay.opaque"
            for entry in path.iterdir()
            for name in os.listxattr(entry, follow_symlinks=False)
        )
    assert {entry.name for entry in tmp_path.iterdir()} == {"canary", "blob", "layer"}


def _pointed(piece: bytes, where: bytes) -> bytes:
    """An entry whose link says CANARY made to say where that is."""
    if piece[157:163] != b"CANARY":
        return piece
    return member(piece[:100].rstrip(b"\0"), kind=piece[156:157], link=where)


async def test_a_volume_through_a_link_stays_inside(tmp_path, canary):
    """CVE-2022-23648: what lies at the path of an image's VOLUME is looked up inside the root."""
    from cri.runtime import rooted
    from host.errors import HostError

    path = await unpack(tmp_path, archive(member(b"data", kind=SYMLINK, link=os.fsencode(canary))))
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in (b"data", b"/../../canary", b"data/alive"):
            with pytest.raises(HostError):
                os.close(rooted.find(root, name))
    finally:
        os.close(root)


def bomb(size: int, count: int) -> bytes:
    """A compressed archive of so many files of so many zeros."""
    piece = gzip.compress(bytes(64 << 20), 9)
    parts = []
    for number in range(count):
        parts.append(gzip.compress(header(b"f%d" % number, size=size)))
        parts.extend([piece] * (min(size, 1 << 30) // (64 << 20)))
    return b"".join(parts)


@pytest.mark.parametrize(
    ("size", "count"), [(100 << 30, 1), (1 << 40, 1)], ids=["100 GB in one file", "1 TB in one file"]
)
async def test_bombs_are_refused_before_the_disk_is_full(tmp_path, size, count):
    data = bomb(size, count)
    assert len(data) < 10 << 20
    with pytest.raises(CorruptContent, match="more than"):
        await unpack(tmp_path, data)
    written = sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*") if path.name != "blob")
    assert written < 1 << 20


PULL = """
import asyncio, json, resource, sys
from pathlib import Path
from cri.images.errors import ImageError
from cri.images.store import ImageStore
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
async def main():
    root = Path(sys.argv[1])
    store = ImageStore(root / "images", registry_config_dir=root / "certs", progress_timeout=20.0)
    await store.open()
    said = []
    for name in ("calm", "wild"):
        before = peak()
        try:
            await store.pull("registry.test/" + name)
        except ImageError as exc:
            said.append([type(exc).__name__, str(exc)])
    await store.close()
    print(json.dumps({"said": said, "grown": peak() - before}))
asyncio.run(main())
"""

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


async def _endless(writer: asyncio.StreamWriter, head: bytes, piece: bytes) -> None:
    writer.write(head)
    for _ in range(4096):  # 1 GiB, if anybody wants it
        writer.write(piece)
        await writer.drain()


def _says(head: bytes, piece: bytes) -> Answer:
    return lambda writer: _endless(writer, head, piece)


_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n"
_QUARTER = 1 << 18
ENDLESS: dict[str, Answer] = {
    "manifest of 1 GB": _says(_OK + b"Content-Length: 1073741824\r\n\r\n", b" " * _QUARTER),
    "chunks without end": _says(
        _OK + b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%s\r\n" % (_QUARTER, b" " * _QUARTER)
    ),
    "chunk size without end": _says(_OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * _QUARTER),
    "chunk extension without end": _says(_OK + b"Transfer-Encoding: chunked\r\n\r\n1;x=", b"y" * _QUARTER),
    "header without end": _says(b"HTTP/1.1 200 OK\r\nX: ", b"y" * _QUARTER),
    "headers without end": _says(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 40_000),
    "status without end": _says(b"HTTP/1.1 200 ", b"y" * _QUARTER),
    "refusal of 1 GB": _says(b"HTTP/1.1 500 No\r\nContent-Length: 1073741824\r\n\r\n", b"{" * _QUARTER),
    "compressed bomb": _says(
        _OK + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n", gzip.compress(bytes(64 << 20))
    ),
}


@pytest.mark.parametrize("answer", ENDLESS.values(), ids=ENDLESS.keys())
async def test_endless_answers_do_not_fill_the_memory(tmp_path, throw_away_namespaces, answer):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        with suppress(ConnectionError):
            if b"/wild/" in request:
                await answer(writer)
            else:
                writer.write(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    (tmp_path / "certs/registry.test").mkdir(parents=True)
    (tmp_path / "certs/registry.test/hosts.toml").write_text(f'server = "http://127.0.0.1:{port}"\n')
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PULL, str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(done.communicate(), 120)
    server.close()
    assert done.returncode == 0, err
    facts = json.loads(out)
    assert len(facts["said"]) == 2, facts
    assert facts["grown"] < 64 << 10, facts  # KiB


async def test_no_tls_is_no_reason_for_plain_http(tmp_path, throw_away_namespaces):
    """Something that speaks no TLS on 443: the pull fails, and nobody knocks at port 80."""
    from cri.images.store import ImageStore

    knocks: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        knocks.append(writer.get_extra_info("sockname")[1])
        with suppress(ConnectionError):
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

    servers = [await asyncio.start_server(serve, "127.0.0.1", port) for port in (443, 80)]
    store = ImageStore(tmp_path / "images")
    await store.open()
    try:
        with pytest.raises(ImageError, match=r"127\.0\.0\.1"):
            await store.pull("127.0.0.1/app:1")
    finally:
        await store.close()
        for server in servers:
            server.close()
    assert set(knocks) == {443}
