"""Reading a tar archive as a stream of entries: a parser with bounds, no files touched.

Understands ustar, PAX (path, linkpath, size, uid, gid, mtime, SCHILY.xattr.*) and GNU long names; v7
archives as a special case. Sparse files are refused. Every number is range-checked before it is used and
every extension header has a size limit, because the archive is a stranger's. The standard library's
tarfile is not used: its filters have been bypassed repeatedly (CVE-2025-4517 and kin).
Source: POSIX pax(1), "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from cri.images.errors import CorruptContent

BLOCK = 512
MAX_EXTENSION = 1 << 20
MAX_ENTRIES = 2_000_000
_MAX_ID = (1 << 32) - 2
_MAX_SIZE = 1 << 46
_MAX_NS = (1 << 63) - 1
_XATTR = b"SCHILY.xattr."
_ZERO = bytes(BLOCK)

FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIR, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_KNOWN = frozenset((FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIR, FIFO))


class Source(Protocol):
    """Where the uncompressed archive comes from."""

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes, fewer only at the end of the stream."""

    def pieces(self, count: int) -> Iterator[memoryview]:
        """`count` bytes in pieces, without joining them; CorruptContent when the stream ends earlier."""


@dataclass(kw_only=True)
class Entry:
    """One member of the archive. Names are bytes as they stand there, not cleaned."""

    kind: bytes
    name: bytes
    link: bytes = b""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    major: int = 0
    minor: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class TarStream:
    """Iterates over the entries; the payload of a file must be taken with `payload` or is skipped."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._pending = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        """Yield entries until the end of the archive; CorruptContent when it is malformed."""
        pax: dict[bytes, bytes] = {}
        long_name = long_link = None
        count = 0
        while (block := self._next_block()) is not None:
            kind = block[156:157]
            if kind in (b"x", b"g", b"L", b"K"):
                data = self._extension(block)
                if kind == b"x":
                    pax = parse_pax(data)
                elif kind == b"L":
                    long_name = data.split(b"\0", 1)[0]
                elif kind == b"K":
                    long_link = data.split(b"\0", 1)[0]
                continue
            count += 1
            if count > MAX_ENTRIES:
                raise CorruptContent(f"tar archive has more than {MAX_ENTRIES} entries")
            entry = parse_header(block, pax, long_name=long_name, long_link=long_link)
            pax, long_name, long_link = {}, None, None
            self._pending = entry.size
            self._padding = -entry.size % BLOCK
            yield entry

    def payload(self) -> Iterator[memoryview]:
        """The bytes of the entry that was yielded last."""
        count, self._pending = self._pending, 0
        return self._source.pieces(count)

    def _next_block(self) -> bytes | None:
        if self._pending or self._padding:
            for _ in self._source.pieces(self._pending):
                pass
            self._read(self._padding)
            self._pending = self._padding = 0
        block = self._source.read(BLOCK)
        if not block or block == _ZERO:
            return None  # the second zero block and padding are the caller's to drain
        if len(block) < BLOCK:
            raise CorruptContent("tar archive ends in the middle of a header")
        check_sum(block)
        return block

    def _extension(self, block: bytes) -> bytes:
        size = _number(block[124:136], "size")
        if size > MAX_EXTENSION:
            raise CorruptContent(f"tar extension header is larger than {MAX_EXTENSION} bytes")
        data = self._read(size)
        self._read(-size % BLOCK)
        return data

    def _read(self, count: int) -> bytes:
        data = self._source.read(count)
        if len(data) < count:
            raise CorruptContent("tar archive ends too early")
        return data


def check_sum(block: bytes) -> None:
    """Check a header's checksum, counted with unsigned or (old archives) signed bytes."""
    total = sum(block) - sum(block[148:156]) + 8 * 0x20
    stored = _number(block[148:156], "checksum")
    if stored == total:
        return
    high = sum(1 for byte in block[:148] + block[156:] if byte > 127)
    if stored != total - 256 * high:
        raise CorruptContent("tar header checksum does not match")


def parse_header(
    block: bytes, pax: dict[bytes, bytes], *, long_name: bytes | None = None, long_link: bytes | None = None
) -> Entry:
    """Parse a 512-byte header together with the extensions that preceded it."""
    kind = block[156:157]
    name = _text(block[0:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = _text(block[345:500]) + b"/" + name
    name = pax.get(b"path", long_name if long_name is not None else name)
    link = pax.get(b"linkpath", long_link if long_link is not None else _text(block[157:257]))
    if kind in (b"\0", b"7"):
        kind = DIR if kind == b"\0" and name.endswith(b"/") else FILE
    if kind == b"S" or any(key.startswith(b"GNU.sparse.") for key in pax):
        raise CorruptContent("tar archive has a sparse file, which is not supported")
    if kind not in _KNOWN:
        raise CorruptContent(f"tar entry has unknown type {kind!r}")
    if not name or b"\0" in name or b"\0" in link:
        raise CorruptContent("tar entry has an empty name or a NUL byte in it")
    device = kind in (CHAR, BLOCK_DEVICE)
    return Entry(
        kind=kind,
        name=name,
        link=link,
        mode=_number(block[100:108], "mode") & 0o7777,
        uid=_bounded(pax.get(b"uid"), block[108:116], "uid", _MAX_ID),
        gid=_bounded(pax.get(b"gid"), block[116:124], "gid", _MAX_ID),
        size=_bounded(pax.get(b"size"), block[124:136], "size", _MAX_SIZE) if kind == FILE else 0,
        mtime_ns=_mtime(pax.get(b"mtime"), block[136:148]),
        major=_bounded(None, block[329:337], "devmajor", 0xFFF) if device else 0,
        minor=_bounded(None, block[337:345], "devminor", 0xFFFFF) if device else 0,
        xattrs={key[len(_XATTR) :]: value for key, value in pax.items() if key.startswith(_XATTR)},
    )


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """Parse PAX records, `<length> <key>=<value>\\n` each; CorruptContent when malformed."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 8)
        digits = data[position:space] if space > 0 else b""
        if not digits.isdigit():
            raise CorruptContent("tar PAX record has no length")
        end = position + int(digits)
        if end > len(data) or end <= space + 1 or data[end - 1 : end] != b"\n":
            raise CorruptContent("tar PAX record has a wrong length")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise CorruptContent("tar PAX record has no key")
        records[key] = value
        position = end
    return records


def _text(field_bytes: bytes) -> bytes:
    return field_bytes.split(b"\0", 1)[0]


def _number(raw: bytes, what: str) -> int:
    """A number field: octal digits, or base 256 when the top bit is set (GNU)."""
    first = raw[0]
    if first & 0x80:
        if first & 0x40:
            raise CorruptContent(f"tar header field {what} is negative")
        return int.from_bytes(bytes((first & 0x7F,)) + raw[1:], "big")
    digits = raw.strip(b" \0").split(b"\0", 1)[0].rstrip(b" ")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise CorruptContent(f"tar header field {what} is not a number")
    return int(digits, 8)


def _bounded(override: bytes | None, raw: bytes, what: str, limit: int) -> int:
    if override is None:
        value = _number(raw, what)
    elif override.isdigit() and len(override) <= 20:
        value = int(override)
    else:
        raise CorruptContent(f"tar PAX record {what} is not a number")
    if value > limit:
        raise CorruptContent(f"tar header field {what} is too large")
    return value


def _mtime(override: bytes | None, raw: bytes) -> int:
    """Nanoseconds since 1970. Times before 1970 and junk become 0: a time never spoils an image."""
    if override is None:
        if raw[0] & 0x80:
            return 0
        return min(_number(raw, "mtime") * 1_000_000_000, _MAX_NS)
    try:
        seconds = float(override) if len(override) <= 40 else 0.0
    except ValueError:
        return 0
    if not math.isfinite(seconds) or not 0 <= seconds < _MAX_NS / 1e9:
        return 0
    whole, _, fraction = override.partition(b".")
    if whole.isdigit() and (not fraction or fraction.isdigit()):
        return min(int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0")), _MAX_NS)
    return 0
