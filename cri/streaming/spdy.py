"""SPDY/3.1, server side, without I/O: feed bytes, get events; ask for bytes to send.

As much of draft-mbelshe-httpbis-spdy-00 as Kubernetes' clients speak: streams opened by the client, data both
ways, ping, reset, goaway. There is no flow control: those clients neither send WINDOW_UPDATE nor wait for it,
and a window that nobody opens again would stop every stream after 64 KiB; TCP holds back instead.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cri.streaming.spdy_dictionary import DICTIONARY

FRAME_LIMIT = 1 << 20
HEADER_LIMIT = 64 << 10
STREAM_LIMIT = 1024
_VERSION = 3
_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _HEADERS, _WINDOW_UPDATE = (
    1,
    2,
    3,
    4,
    6,
    7,
    8,
    9,
)
_FIN = 0x01
_PROTOCOL_ERROR, _REFUSED, _CANCEL = 1, 3, 5
_HEAD = struct.Struct(">II")
_WORD = struct.Struct(">I")


class SpdyError(Exception):
    """The peer broke the protocol; the connection ends."""


@dataclass(frozen=True)
class StreamOpened:
    """The client opened a stream; answer with `Connection.accept` or `Connection.reset`."""

    stream: int
    headers: Mapping[str, str]
    ended: bool
    """It will send nothing on it."""


@dataclass(frozen=True)
class StreamData:
    """Data on an open stream."""

    stream: int
    data: bytes
    ended: bool
    """It will send nothing more on it."""


@dataclass(frozen=True)
class StreamReset:
    """The client gave a stream up."""

    stream: int


@dataclass(frozen=True)
class Pinged:
    """A ping; `answer` is to be sent."""

    answer: bytes


@dataclass(frozen=True)
class Leaving:
    """The client opens no more streams."""


Event = StreamOpened | StreamData | StreamReset | Pinged | Leaving


class Connection:
    """One connection's frames, its header compression both ways, and which streams are open."""

    def __init__(self) -> None:
        """No streams."""
        self._buffer = bytearray()
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._receiving: set[int] = set()
        self._sending: set[int] = set()
        self._last = 0

    def feed(self, data: bytes) -> Iterator[Event]:
        """Events that these bytes complete.

        Raises:
            SpdyError: feed nothing more.
        """
        self._buffer += data
        while len(self._buffer) >= 8:
            first, second = _HEAD.unpack_from(self._buffer)
            flags, length = second >> 24, second & 0xFFFFFF
            if length > FRAME_LIMIT:
                raise SpdyError(f"frame of {length} bytes is too long")
            if len(self._buffer) < 8 + length:
                return
            payload = bytes(self._buffer[8 : 8 + length])
            del self._buffer[: 8 + length]
            event = self._control(first, flags, payload) if first >> 31 else self._data(first, flags, payload)
            if event is not None:
                yield event

    def _data(self, stream: int, flags: int, payload: bytes) -> Event | None:
        if stream not in self._receiving:
            return None  # reset by us, or ended by the peer: late data is dropped
        ended = bool(flags & _FIN)
        if ended:
            self._receiving.discard(stream)
        return StreamData(stream, payload, ended)

    def _control(self, first: int, flags: int, payload: bytes) -> Event | None:
        if (first >> 16) & 0x7FFF != _VERSION:
            raise SpdyError(f"version {(first >> 16) & 0x7FFF} is not {_VERSION}")
        match first & 0xFFFF:
            case 1:
                return self._opened(flags, payload)
            case 3:
                stream = _number(payload) & 0x7FFFFFFF
                self._receiving.discard(stream)
                self._sending.discard(stream)
                return StreamReset(stream)
            case 6:
                return Pinged(_control_frame(_PING, payload[:4])) if _number(payload) % 2 else None
            case 7:
                return Leaving()
            case 8:
                self._read_headers(payload[4:])  # keeps the decompressor in step
        return None

    def _opened(self, flags: int, payload: bytes) -> Event:
        stream = _number(payload) & 0x7FFFFFFF
        if len(payload) < 10 or stream % 2 == 0 or stream <= self._last:
            raise SpdyError(f"stream {stream} cannot be opened now")
        headers = self._read_headers(payload[10:])
        self._last = stream
        if len(self._receiving | self._sending) >= STREAM_LIMIT:
            raise SpdyError(f"more than {STREAM_LIMIT} streams")
        self._sending.add(stream)
        if not flags & _FIN:
            self._receiving.add(stream)
        return StreamOpened(stream, headers, bool(flags & _FIN))

    def _read_headers(self, block: bytes) -> dict[str, str]:
        try:
            plain = self._inflate.decompress(block, HEADER_LIMIT)
        except zlib.error as exc:
            raise SpdyError("header block cannot be decompressed") from exc
        if self._inflate.unconsumed_tail:
            raise SpdyError(f"header block is longer than {HEADER_LIMIT} bytes")
        return _parse_headers(plain)

    def accept(self, stream: int) -> bytes:
        """Accept a stream (SYN_REPLY without headers)."""
        block = self._deflate.compress(_WORD.pack(0)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        return _control_frame(_SYN_REPLY, _WORD.pack(stream) + block)

    def send(self, stream: int, data: bytes, *, end: bool = False) -> bytes:
        """Data for a stream; nothing when we or the client have closed it."""
        if stream not in self._sending:
            return b""
        if end:
            self._sending.discard(stream)
        return _HEAD.pack(stream, (_FIN if end else 0) << 24 | len(data)) + data

    def reset(self, stream: int, *, refused: bool = False) -> bytes:
        """Give a stream up, both ways; nothing when it is closed already."""
        if stream not in self._sending | self._receiving:
            return b""
        self._sending.discard(stream)
        self._receiving.discard(stream)
        return _control_frame(_RST_STREAM, _HEAD.pack(stream, _REFUSED if refused else _CANCEL))

    def leave(self) -> bytes:
        """We answer no more streams (GOAWAY, status OK)."""
        return _control_frame(_GOAWAY, _HEAD.pack(self._last, 0))


def _number(payload: bytes) -> int:
    if len(payload) < 4:
        raise SpdyError("control frame is too short")
    return int(_WORD.unpack_from(payload)[0])


def _control_frame(kind: int, payload: bytes) -> bytes:
    return _HEAD.pack(1 << 31 | _VERSION << 16 | kind, len(payload)) + payload


def _parse_headers(plain: bytes) -> dict[str, str]:
    """Name/value pairs with 32-bit lengths; names in lower case, as the draft has them.

    Raises:
        SpdyError: lengths that do not fit.
    """
    view, headers = memoryview(plain), {}

    def take() -> bytes:
        nonlocal view
        size = _number(bytes(view[:4]))
        word, view = bytes(view[4 : 4 + size]), view[4 + size :]
        if len(word) != size:
            raise SpdyError("header block is cut")
        return word

    count, view = _number(bytes(view[:4])), view[4:]
    if count > HEADER_LIMIT // 8:
        raise SpdyError("too many headers")
    for _ in range(count):
        name, value = take(), take()
        headers[name.decode("latin-1").lower()] = value.decode("latin-1")
    return headers
