"""Elements of nftables sets and maps, added and deleted by messages of our own: no program is executed.

For what changes all the time. nft itself takes 4-8 ms of processor for one element, because it first asks the
kernel for every chain and set there is; a message takes 0.1 ms. Deleting waits for the kernel's RCU grace
period (about 10 ms) either way. Everything else goes through `host.rules.nft`.

Keys are addresses, or several joined by " . "; the values of maps are `goto CHAIN`.

Source: linux/netfilter/nf_tables.h, net/netfilter/nfnetlink.c (batches: all or nothing).
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from host import nlmsg
from host.errors import InputError, from_errno
from host.netlink import netfilter_batch
from host.nlmsg import attr, nest

_NFPROTO_INET = 1
_NFNL_MSG_BATCH_BEGIN, _NFNL_MSG_BATCH_END, _NFNL_SUBSYS_NFTABLES = 0x10, 0x11, 10
_NFT_MSG_NEWSETELEM, _NFT_MSG_DELSETELEM = 12, 14
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEM = 1, 2, 3, 1  # NFTA_SET_ELEM_LIST_*, NFTA_LIST_ELEM
_ELEM_KEY, _ELEM_DATA, _DATA_VALUE, _DATA_VERDICT = 1, 2, 1, 2  # NFTA_SET_ELEM_*, NFTA_DATA_*
_VERDICT_CODE, _VERDICT_CHAIN, _NFT_GOTO = 1, 2, -4
_HEADER, _GENMSG = struct.Struct("=IHHII"), struct.Struct("=BBH")


@dataclass(frozen=True)
class Change:
    """One element of one set or map, as nft writes it: `key` or `key : goto chain`."""

    name: str
    element: str
    remove: bool = False


def apply(table: str, changes: Iterable[Change]) -> None:
    """Change elements of sets in an `inet` table of the calling thread's network namespace, all or nothing.

    Raises:
        NotFound: no such table, set, chain, or element to remove.
        HostError: the kernel refuses; nothing was changed.
        InputError: an element is not of the kind this module writes.
    """
    batch, count = encode(table, changes)
    if not count:
        return
    what = f"change elements of table {table}"
    for code in filter(None, netfilter_batch(batch, count, what)):
        raise from_errno(code, what)


def encode(table: str, changes: Iterable[Change]) -> tuple[bytes, int]:
    """The batch, and how many answers it will have. Removals come first, so that a key can change its value.
    Pure. Raises InputError."""
    wanted = sorted(changes, key=lambda change: (not change.remove, change.name))
    messages = []
    for (remove, name), group in itertools.groupby(wanted, key=lambda change: (change.remove, change.name)):
        kind = _NFT_MSG_DELSETELEM if remove else _NFT_MSG_NEWSETELEM
        elements = [_element(change.element, key_only=remove) for change in group]
        body = _GENMSG.pack(_NFPROTO_INET, 0, 0) + b"".join(
            (
                attr(_LIST_TABLE, table.encode() + b"\0"),
                attr(_LIST_SET, name.encode() + b"\0"),
                nest(_LIST_ELEMENTS, *elements),
            )
        )
        flags = nlmsg.NLM_F_REQUEST | nlmsg.NLM_F_ACK | (0 if remove else nlmsg.NLM_F_CREATE)
        messages.append((_NFNL_SUBSYS_NFTABLES << 8 | kind, flags, body))
    edge = _GENMSG.pack(socket.AF_UNSPEC, 0, socket.htons(_NFNL_SUBSYS_NFTABLES))
    begin, end = ((kind, nlmsg.NLM_F_REQUEST, edge) for kind in (_NFNL_MSG_BATCH_BEGIN, _NFNL_MSG_BATCH_END))
    data = bytearray()
    for sequence, (kind, flags, body) in enumerate((begin, *messages, end), 1):
        data += _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body
    return bytes(data), len(messages)


def _element(text: str, *, key_only: bool) -> bytes:
    key, _, value = text.partition(" : ")
    try:
        packed = b"".join(ipaddress.ip_address(part).packed for part in key.split(" . "))
    except ValueError as exc:
        raise InputError(f"not an element of addresses: {text[:80]!r}") from exc
    parts = [nest(_ELEM_KEY, attr(_DATA_VALUE, packed))]
    if value and not key_only:
        verb, _, chain = value.partition(" ")
        if verb != "goto" or not chain:
            raise InputError(f"not a value of the kind goto CHAIN: {text[:80]!r}")
        code = attr(_VERDICT_CODE, struct.pack(">i", _NFT_GOTO))
        verdict = nest(_DATA_VERDICT, code, attr(_VERDICT_CHAIN, os.fsencode(chain) + b"\0"))
        parts.append(nest(_ELEM_DATA, verdict))
    return nest(_LIST_ELEM, *parts)
