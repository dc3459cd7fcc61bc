"""WebSocket, server side (RFC 6455), without I/O: feed bytes, get events; ask for bytes to send.

No extensions, so reserved bits are errors; fragmented messages are put together up to a limit; pings are
answered by the caller with the bytes of `pong`. A protocol error carries the close code to answer with.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from cri.streaming.http import BadRequest, Request

MESSAGE_LIMIT = 1 << 20
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_CONTROL_LIMIT = 125
_UNMASK_PIECE = 16 << 10
"""A multiple of four that stays in the processor's cache."""


class WebSocketError(Exception):
    """The peer broke the protocol; `code` is the close code (RFC 6455 section 7.4)."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


@dataclass(frozen=True)
class Message:
    """A whole text or binary message."""

    data: bytes


@dataclass(frozen=True)
class Ping:
    """A ping to be answered with a pong of the same data."""

    data: bytes


@dataclass(frozen=True)
class Closed:
    """The peer's close frame; nothing comes after it."""

    code: int


Event = Message | Ping | Closed


def accept_key(request: Request) -> str:
    """The Sec-WebSocket-Accept value for an opening handshake.

    Raises:
        BadRequest: not a version 13 handshake.
    """
    key = request.headers.get("sec-websocket-key", "")
    if request.method != "GET" or request.headers.get("sec-websocket-version") != "13":
        raise BadRequest("websocket needs GET and Sec-WebSocket-Version 13")
    try:
        nonce = base64.b64decode(key, validate=True)
    except ValueError as exc:
        raise BadRequest("Sec-WebSocket-Key is not base64") from exc
    if len(nonce) != 16:
        raise BadRequest("Sec-WebSocket-Key is not 16 bytes")
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


class Decoder:
    """Frames of a client put together to messages."""

    def __init__(self, limit: int = MESSAGE_LIMIT) -> None:
        """`limit`: bytes of one message, fragments together."""
        self._limit = limit
        self._buffer = bytearray()
        self._message: bytearray | None = None
        self._closed = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """Events that these bytes complete.

        Raises:
            WebSocketError: the peer broke the protocol; feed nothing more.
        """
        self._buffer += data
        while not self._closed:
            frame = self._take_frame()
            if frame is None:
                return
            event = self._event(*frame)
            if event is not None:
                yield event

    def _take_frame(self) -> tuple[int, bool, bytes] | None:
        """The next whole frame: opcode, whether it is final, unmasked payload; None when more is needed."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        opcode, length, start = first & 0x0F, second & 0x7F, 2
        if first & 0x70:
            raise WebSocketError(1002, "reserved bits are set")
        if not second & 0x80:
            raise WebSocketError(1002, "client frame is not masked")
        if opcode >= 0x8 and (length > _CONTROL_LIMIT or not first & 0x80):
            raise WebSocketError(1002, "control frame is fragmented or too long")
        if length >= 126:
            start = 4 if length == 126 else 10
            if len(buffer) < start:
                return None
            length = int.from_bytes(buffer[2:start], "big")
        if length + len(self._message or b"") > self._limit:
            raise WebSocketError(1009, f"message is longer than {self._limit} bytes")
        end = start + 4 + length
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            payload = _unmask(view[start + 4 : end], bytes(view[start : start + 4]))
        del buffer[:end]
        return opcode, bool(first & 0x80), payload

    def _event(self, opcode: int, final: bool, payload: bytes) -> Event | None:
        if opcode == _CLOSE:
            self._closed = True
            if len(payload) == 1:
                raise WebSocketError(1002, "close frame of one byte")
            return Closed(int.from_bytes(payload[:2], "big") if payload else 1005)
        if opcode == _PING:
            return Ping(payload)
        if opcode == _PONG:
            return None
        if opcode not in (_CONTINUATION, _TEXT, _BINARY):
            raise WebSocketError(1002, f"opcode {opcode} is reserved")
        if (opcode == _CONTINUATION) != (self._message is not None):
            raise WebSocketError(1002, "fragments out of order")
        message = self._message if self._message is not None else bytearray()
        message += payload
        self._message = None if final else message
        return Message(bytes(message)) if final else None


def _unmask(payload: memoryview, mask: bytes) -> bytes:
    """Combine every byte with one of the mask's four; the view is released."""
    with payload:
        size = len(payload)
        if size <= _UNMASK_PIECE:
            return _xor(payload, mask)
        return b"".join(_xor(payload[at : at + _UNMASK_PIECE], mask) for at in range(0, size, _UNMASK_PIECE))


def _xor(payload: memoryview, mask: bytes) -> bytes:
    size = len(payload)
    # One XOR of two big integers is about a hundred times faster than a loop over bytes.
    value = int.from_bytes(payload, "little") ^ int.from_bytes((mask * (size // 4 + 1))[:size], "little")
    payload.release()
    return value.to_bytes(size, "little")


def _frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big")
    return head + payload


def message(data: bytes, *, text: bool = False) -> bytes:
    """The frame of a whole message."""
    return _frame(_TEXT if text else _BINARY, data)


def pong(data: bytes) -> bytes:
    """The answer to a ping."""
    return _frame(_PONG, data)


def close(code: int = 1000, reason: str = "") -> bytes:
    """A close frame."""
    return _frame(_CLOSE, code.to_bytes(2, "big") + reason.encode()[: _CONTROL_LIMIT - 2])
