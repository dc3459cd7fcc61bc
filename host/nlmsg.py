"""What messages of all netlink families have in common: flags, requests, attributes. No socket in here.

Layouts: linux/netlink.h; `man 7 netlink`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from host.errors import InputError

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 1, 4, 0x10
NLM_F_DUMP, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x300, 0x100, 0x200, 0x400
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF

_ATTR = struct.Struct("=HH")


@dataclass(frozen=True)
class Request:
    """One message to the kernel: type, flags beside REQUEST and ACK, payload; `what` is for errors."""

    kind: int
    flags: int
    body: bytes
    what: str


def attr(kind: int, data: bytes) -> bytes:
    """One attribute, padded to 4 bytes. Raises InputError where its length does not fit 16 bits."""
    length = 4 + len(data)
    if length > 0xFFFF:
        raise InputError(f"netlink attribute {kind} of {length} bytes does not fit 16 bits")
    return _ATTR.pack(length, kind) + data + b"\0" * (-length % 4)


def nest(kind: int, *children: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attr(kind | NLA_F_NESTED, b"".join(children))


def attrs(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """The (type, payload) pairs in `data` from `start`; stops at the first that claims more than there is."""
    while start + 4 <= len(data):
        length, kind = _ATTR.unpack_from(data, start)
        if length < 4 or start + length > len(data):
            return
        yield kind & NLA_TYPE_MASK, data[start + 4 : start + length]
        start += (length + 3) & ~3
