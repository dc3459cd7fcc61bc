"""The tar header parser and the decompression behind it, with archives spoiled on purpose."""

import bz2
import gzip
import io
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from images_kit import Bytes, archive, digest_of, header, member, pax

from cri.images import tarstream
from cri.images.decompress import Hashed, LayerSource, chunks
from cri.images.errors import CorruptContent
from cri.images.tarstream import TarStream


def entries(data: bytes) -> list[tarstream.Entry]:
    return list(TarStream(Bytes(data)))


def test_plain_ustar():
    (entry,) = entries(archive(member(b"a/b", b"hello", mode=0o4755)))
    assert (entry.kind, entry.name, entry.size, entry.mode) == (b"0", b"a/b", 5, 0o4755)
    assert entry.mtime_ns == 1_700_000_000 * 10**9


def test_pax_overrides_the_header():
    data = archive(
        pax(path=b"long/name", linkpath=b"x", uid=b"70000", gid=b"70001", mtime=b"12.25", size=b"3"),
        header(b"short") + b"abc" + bytes(509),
        member(b"next"),
    )
    first, second = entries(data)
    assert (first.name, first.uid, first.gid, first.size) == (b"long/name", 70000, 70001, 3)
    assert first.mtime_ns == 12_250_000_000
    assert second.name == b"next"


def test_xattrs_from_pax():
    (entry,) = entries(archive(pax(SCHILY__xattr__user__x=b"\x00\x01"), member(b"f")))
    assert entry.xattrs == {b"user.x": b"\x00\x01"}


def test_gnu_long_names():
    long = b"d/" * 90 + b"f"
    data = archive(
        member(b"././@LongLink", long + b"\0", kind=b"L"),
        member(b"././@LongLink", b"target" + b"\0", kind=b"K"),
        member(b"cut", kind=b"2"),
    )
    (entry,) = entries(data)
    assert (entry.name, entry.link) == (long, b"target")


def test_ustar_prefix_and_old_directories():
    block = bytearray(header(b"name"))
    block[345:351] = b"prefix"
    block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
    old = bytearray(header(b"dir/", kind=b"\0"))
    first, second = entries(archive(bytes(block), bytes(old)))
    assert first.name == b"prefix/name"
    assert second.kind == tarstream.DIR


def test_links_and_directories_have_no_payload():
    data = archive(header(b"l", kind=b"2", link=b"t", size=512), member(b"f", b"x"))
    assert [entry.name for entry in entries(data)] == [b"l", b"f"]


SPOILED = {
    "checksum": b"x" + header(b"f")[1:],
    "octal": member(b"f", raw_size=b"99999999999\0"),
    "negative base 256": member(b"f", raw_size=b"\xff" * 12),
    "size overflow": member(b"f", raw_size=b"\x80" + b"\x7f" * 11),
    "size beyond the end": header(b"f", size=10_000),
    "empty name": member(b""),
    "unknown type": member(b"f", kind=b"V"),
    "gnu sparse": member(b"f", kind=b"S"),
    "pax sparse": pax(GNU__sparse__map=b"0,1") + member(b"f"),
    "pax negative size": pax(size=b"-1") + member(b"f"),
    "pax huge uid": pax(uid=b"4294967296") + member(b"f"),
    "pax NUL in path": pax(path=b"a\0b") + member(b"f"),
    "pax length lies": member(b"p", b"99 path=x\n", kind=b"x") + member(b"f"),
    "pax length zero": member(b"p", b"0 path=x\n", kind=b"x") + member(b"f"),
    "pax no key": member(b"p", b"5 =x\n", kind=b"x") + member(b"f"),
    "giant long name": header(b"l", kind=b"L", size=1 << 30) + bytes(512),
    "cut header": member(b"f")[:300],
}


@pytest.mark.parametrize("spoiled", SPOILED.values(), ids=SPOILED.keys())
def test_spoiled_archives_are_corrupt_content(spoiled):
    with pytest.raises(CorruptContent):
        entries(spoiled)


@given(st.binary(max_size=2048))
def test_any_bytes_parse_or_are_corrupt(data):
    with suppress(CorruptContent):
        entries(data)


@settings(max_examples=200)
@given(st.integers(0, 511), st.binary(min_size=1, max_size=12))
def test_any_change_of_a_header_is_read_or_refused(at, change):
    block = bytearray(member(b"name", b"data", link=b"link"))
    block[at : at + len(change)] = change[: 512 - at]
    block[148:156] = b"%06o\0 " % (sum(block[:512]) - sum(block[148:156]) + 256)
    with suppress(CorruptContent):
        for entry in entries(bytes(block) + bytes(1024)):
            assert 0 <= entry.size < 1 << 46
            assert entry.name
            assert b"\0" not in entry.name


@given(st.binary(max_size=400))
def test_any_pax_body(data):
    with suppress(CorruptContent):
        tarstream.parse_pax(data)


@pytest.mark.parametrize("text", [b"nan", b"inf", b"-5", b"1e999", b"", b"x", b"9" * 39])
def test_junk_times_become_zero(text):
    (entry,) = entries(archive(pax(mtime=text), member(b"f")))
    assert entry.mtime_ns == 0


def unpacked(data: bytes, limit: int = 1 << 30, *, sandboxed: bool = False) -> tuple[bytes, str]:
    with LayerSource(chunks(Hashed(io.BytesIO(data)), sandboxed=sandboxed), max_bytes=limit) as source:
        content = source.read(1 << 30)
        return content, source.finish()


PLAIN = bytes(range(256)) * 9000


both_engines = pytest.mark.parametrize("sandboxed", [False, True], ids=["zlib", "isal"])


@both_engines
@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        gzip.compress(PLAIN),
        gzip.compress(PLAIN[:1000]) + gzip.compress(PLAIN[1000:]),
        gzip.compress(PLAIN) + bytes(100),
        zstandard.compress(PLAIN),
        zstandard.compress(PLAIN[:1000]) + zstandard.compress(PLAIN[1000:]),
        b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstandard.compress(PLAIN),
    ],
    ids=["plain", "gzip", "gzip members", "gzip padded", "zstd", "zstd frames", "zstd skippable"],
)
def test_compressions(data, sandboxed):
    content, digest = unpacked(data, sandboxed=sandboxed)
    assert content == PLAIN
    assert digest == digest_of(PLAIN)


@both_engines
@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(PLAIN)[:-9],
        gzip.compress(PLAIN)[:500],
        gzip.compress(PLAIN)[:-8] + b"\0\0\0\0" + gzip.compress(PLAIN)[-4:],
        gzip.compress(PLAIN) + b"junk",
        gzip.compress(PLAIN)[:50] + b"\xff" * 50,
        zstandard.compress(PLAIN)[:9] + b"\xff" * 4000,
    ],
    ids=["cut trailer", "cut", "wrong crc", "trailing junk", "gzip noise", "zstd noise"],
)
def test_broken_compressions_are_corrupt_content(data, sandboxed):
    with pytest.raises(CorruptContent):
        unpacked(data, sandboxed=sandboxed)


@both_engines
@given(st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=100, deadline=None)
def test_a_changed_gzip_stream_never_gives_other_content(sandboxed, at, change):
    """ISA-L lets a wrong length at the end pass; wrong content never."""
    plain = b"".join(digest_of(bytes((n,))).encode() for n in range(8))
    good = gzip.compress(plain, mtime=0)
    at %= len(good)
    spoiled = good[:at] + bytes((change,)) + good[at + 1 :]
    content = plain
    with suppress(CorruptContent):
        content, _ = unpacked(spoiled, sandboxed=sandboxed)
    assert content == plain or at < 2  # without the magic number it is no gzip


def test_unknown_compression_is_no_archive():
    content, _ = unpacked(bz2.compress(PLAIN))
    with pytest.raises(CorruptContent):
        entries(content)


def test_bombs_end_at_the_limit():
    with pytest.raises(CorruptContent, match="more than"):
        unpacked(gzip.compress(bytes(64 << 20)), limit=8 << 20)
    window = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    bomb = zstandard.ZstdCompressor(compression_params=window).compressobj()
    data = bomb.compress(bytes(1 << 20)) + bomb.flush()
    with pytest.raises(CorruptContent, match="window"):
        unpacked(data)


def test_leaving_early_ends_the_threads():
    with LayerSource(chunks(Hashed(io.BytesIO(bytes(64 << 20)))), max_bytes=1 << 30) as source:
        assert source.read(512) == bytes(512)
