"""Messages between nodelet-cri, the spawner, supervisors and container inits: typed, length-capped, small.

A message is one value made of None, bool, int (64 bits), bytes, str, list and dict (with str keys), in a
frame of a 4-byte length and a 1-byte count of file descriptors that travel with it (SCM_RIGHTS).
JSON and pickle
would each cost every pod's supervisor an import, and pickle runs code.

Imports little: see the package's text.
"""

from __future__ import annotations

import os
import struct
from sys import intern

from cri.runtime import sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cri.runtime.sockets import Socket

MAX_FRAME = 8 << 20
"""Largest message; arguments and environment of one process are at most a quarter of it in the kernel."""
MAX_DEPTH = 12
MAX_FDS = sockets.MAX_FDS
HEADER = struct.Struct("!IB")
_COUNT = struct.Struct("!I")
_INTEGER = struct.Struct("!q")


class WireError(ValueError):
    """Bytes that are no message of ours; the connection they came from is not to be used again."""


def encode(value: Any) -> bytes:
    """A value as bytes.

    Raises:
        TypeError: a type that messages do not have.
    """
    parts: list[bytes] = []
    _encode(value, parts.append)
    return b"".join(parts)


def _encode(value: Any, put: Any) -> None:
    if value is None:
        put(b"N")
    elif value is True or value is False:
        put(b"T" if value else b"F")
    elif isinstance(value, int):
        put(b"i" + _INTEGER.pack(value))
    elif isinstance(value, bytes):
        put(b"b" + _COUNT.pack(len(value)))
        put(value)
    elif isinstance(value, str):
        raw = value.encode()
        put(b"s" + _COUNT.pack(len(raw)))
        put(raw)
    elif isinstance(value, list | tuple):
        put(b"l" + _COUNT.pack(len(value)))
        for item in value:
            _encode(item, put)
    elif isinstance(value, dict):
        put(b"d" + _COUNT.pack(len(value)))
        for key, item in value.items():
            _encode(str(key), put)
            _encode(item, put)
    else:
        raise TypeError(f"a message cannot hold {type(value).__name__}")


def decode(data: bytes) -> Any:
    """The value in exactly these bytes.

    Raises:
        WireError: cut, too deep, of an unknown type, or followed by something else.
    """
    try:
        value, end = _decode(data, 0, 0)
    except (struct.error, UnicodeDecodeError, IndexError) as exc:
        raise WireError("message is cut or damaged") from exc
    if end != len(data):
        raise WireError("message is followed by other bytes")
    return value


def _decode(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise WireError("message is nested too deep")
    tag = data[at]
    at += 1
    if tag in b"NTF":
        return {78: None, 84: True, 70: False}[tag], at
    if tag == 105:
        return _INTEGER.unpack_from(data, at)[0], at + 8
    (count,) = _COUNT.unpack_from(data, at)
    at += 4
    if count > len(data) - at:
        raise WireError("message announces more than it holds")
    if tag in b"bs":
        raw = data[at : at + count]
        return (raw if tag == 98 else raw.decode()), at + count
    if tag == 108:
        items = []
        for _ in range(count):
            item, at = _decode(data, at, depth + 1)
            items.append(item)
        return items, at
    if tag == 100:
        found = {}
        for _ in range(count):
            key, at = _decode(data, at, depth + 1)
            if not isinstance(key, str):
                raise WireError("message has a key that is no text")
            found[intern(key)], at = _decode(data, at, depth + 1)
        return found, at
    raise WireError("message has an unknown type")


def frame(value: Any, fds: int = 0) -> bytes:
    """A value as a frame that announces this many descriptors.

    Raises:
        ValueError: larger than MAX_FRAME.
    """
    body = encode(value)
    if len(body) > MAX_FRAME:
        raise ValueError(f"message of {len(body)} bytes is larger than {MAX_FRAME}")
    return HEADER.pack(len(body), fds) + body


class Frames:
    """Puts received bytes and descriptors together to messages again; no socket in here."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: list[int] = []

    def feed(self, data: bytes, fds: list[int]) -> list[tuple[Any, list[int]]]:
        """Every (value, descriptors) that is complete now.

        Raises:
            WireError: no message of ours.
        """
        self._buffer += data
        self._fds += fds
        done = []
        while len(self._buffer) >= HEADER.size:
            length, count = HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME or count > MAX_FDS:
                raise WireError("message is larger than allowed")
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            if len(self._fds) < count:
                raise WireError("message lacks its descriptors")
            value = decode(bytes(self._buffer[HEADER.size : end]))
            done.append((value, self._fds[:count]))
            del self._buffer[:end], self._fds[:count]
        return done

    def close(self) -> None:
        """Close descriptors that belong to no complete message."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def receive_messages(sock: Socket, frames: Frames) -> list[tuple[Any, list[int]]] | None:
    """What a non-blocking socket completes now, perhaps nothing; None: the peer is gone or not to be used."""
    try:
        data, fds = sockets.receive(sock)
        return frames.feed(data, fds) if data else None
    except BlockingIOError:
        return []
    except (OSError, WireError):
        return None


def send_blocking(sock: Socket, value: Any, fds: tuple[int, ...] = ()) -> None:
    """Send one message on a blocking socket."""
    data = frame(value, len(fds))
    sent = sockets.send(sock, data, fds)
    if sent < len(data):
        sock.sendall(data[sent:])


def send_packet(sock: Socket, value: Any, fds: tuple[int, ...] = ()) -> None:
    """Send one message as one packet of a SOCK_SEQPACKET socket (small messages only)."""
    sockets.send(sock, encode(value), fds)


def receive_packet(sock: Socket) -> tuple[Any, list[int]]:
    """One packet of a SOCK_SEQPACKET socket as (value, descriptors); (None, []) at its end."""
    try:
        data, fds = sockets.receive(sock)
    except ConnectionResetError:
        # The peer ended with a message of ours unread. That is told once, before what it had still sent.
        data, fds = sockets.receive(sock)
    return (decode(data), fds) if data else (None, [])
