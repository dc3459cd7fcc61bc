"""Links, addresses, routes, neighbours and FDB of one network namespace, over one rtnetlink socket.

Requests are values made by host.rtnl; `Netlink.execute` sends any number of them in one system call and
reads their answers, so a pod's whole wiring takes a handful of calls. A socket belongs to the namespace it
was opened in for ever, whichever thread uses it, and may be shared by threads.

Not for: packet filters (host.rules), IPVS, ipset and conntrack.
"""

from __future__ import annotations

import errno
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from host import netns as namespaces
from host import nlmsg, rtnl
from host.errors import Busy, HostError, NotFound, from_errno, from_oserror
from host.nlmsg import Request
from host.rtnl import Address, Link, Neighbour, Route

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_ERROR = struct.Struct("=i")
_RECEIVE_BYTES = 1 << 18
_DUMP_ATTEMPTS = 5
_ANSWER_SECONDS = 10.0
_NETLINK_NETFILTER = 12  # linux/netlink.h; Python names it from 3.12 on
_NFNL_SUBSYS_NFTABLES, _NFT_MSG_GETGEN, _NFTA_GEN_ID = 10, 16, 1  # linux/netfilter/nf_tables.h
_NFT_MSG_GETOBJ, _NFTA_OBJ_TABLE, _NFTA_OBJ_NAME, _NFTA_OBJ_TYPE, _NFTA_OBJ_DATA = 19, 1, 2, 3, 4
_NFT_OBJECT_COUNTER, _NFTA_COUNTER_PACKETS, _NFPROTO_INET = 1, 2, 1
_ATTRIBUTE = 0x3FFF  # NLA_TYPE_MASK: without the flags of nesting and byte order

R = TypeVar("R")


class Netlink:
    """A rtnetlink socket in the calling thread's network namespace, or in `netns` (fd or path).

    Close it, or use it as a context manager. All methods raise HostError types (NotFound, Exists, …).
    """

    def __init__(self, netns: namespaces.NetnsRef | None = None) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        try:
            if netns is None:
                self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
            else:
                self._socket = namespaces.open_socket(netns, socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
            # Dumps are filtered by the kernel where the request names a device (since 4.20).
            self._socket.setsockopt(nlmsg.SOL_NETLINK, nlmsg.NETLINK_GET_STRICT_CHK, 1)
            self._socket.bind((0, 0))
            self._socket.settimeout(_ANSWER_SECONDS)
        except HostError:
            raise
        except OSError as exc:
            raise from_oserror(exc, "open a netlink socket") from exc
        self._lock = threading.Lock()
        self._sequence = itertools.count(1)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        self._socket.close()

    def execute(self, *requests: Request, ignore: tuple[type[HostError], ...] = ()) -> None:
        """Send requests in one go and wait for all answers.

        The kernel works on every request even when an earlier one failed; the first failure that is not of
        a type in `ignore` is raised.
        """
        for failure, request in zip(self.try_execute(*requests), requests, strict=True):
            if failure and not isinstance(error := from_errno(failure, request.what), ignore):
                raise error

    def try_execute(self, *requests: Request) -> list[int]:
        """As `execute`, but gives the errno of each request (0: done) instead of raising it."""
        with self._lock:
            first = self._send(requests, nlmsg.NLM_F_ACK)
            answers: dict[int, int] = {}
            while len(answers) < len(requests):
                for kind, _flags, sequence, payload in self._receive():
                    if kind == nlmsg.NLMSG_ERROR and first <= sequence < first + len(requests):
                        answers[sequence] = -_ERROR.unpack_from(payload)[0]
        return [answers[first + offset] for offset in range(len(requests))]

    def _send(self, requests: Sequence[Request], flags: int) -> int:
        sequences = [next(self._sequence) for _ in requests]
        data = bytearray()
        for sequence, request in zip(sequences, requests, strict=True):
            length = _HEADER.size + len(request.body)
            all_flags = request.flags | nlmsg.NLM_F_REQUEST | flags
            data += _HEADER.pack(length, request.kind, all_flags, sequence, 0) + request.body
            data += b"\0" * (-length % 4)
        try:
            self._socket.send(data)
        except OSError as exc:
            raise from_oserror(exc, f"send to netlink: {requests[0].what}") from exc
        return sequences[0]

    def _receive(self) -> list[tuple[int, int, int, bytes]]:
        """The messages of one datagram as (type, flags, sequence, payload)."""
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError as exc:
            raise from_errno(errno.ETIMEDOUT, "wait for a netlink answer") from exc
        except OSError as exc:
            raise from_oserror(exc, "receive from netlink") from exc
        messages, start = [], 0
        while start + _HEADER.size <= len(data):
            length, kind, flags, sequence, _port = _HEADER.unpack_from(data, start)
            if length < _HEADER.size or start + length > len(data):
                raise from_errno(errno.EBADMSG, "receive from netlink", "message longer than its datagram")
            messages.append((kind, flags, sequence, data[start + _HEADER.size : start + length]))
            start += (length + 3) & ~3
        return messages

    def get_link(self, name: str | int) -> Link:
        """The device of that name or index. Raises NotFound."""
        request = rtnl.get_link(name)
        with self._lock:
            wanted = self._send([request], 0)
            while True:
                for kind, _flags, sequence, payload in self._receive():
                    if sequence != wanted:
                        continue
                    if kind == nlmsg.NLMSG_ERROR:
                        raise from_errno(-_ERROR.unpack_from(payload)[0] or errno.EIO, request.what)
                    return rtnl.parse_link(payload)

    def find_link(self, name: str) -> Link | None:
        """The device of that name, or None."""
        with suppress(NotFound):
            return self.get_link(name)
        return None

    def dump(self, request: Request, parse: Callable[[bytes], R]) -> list[R]:
        """All records of a dump; one the kernel marks as interrupted by a change is read again (5 times).

        `parse` makes one of a message's payload. For lists that no method below gives (host.traffic).
        """
        with self._lock:
            for _ in range(_DUMP_ATTEMPTS):
                found = self._dump_once(request, parse)
                if found is not None:
                    return found
        raise Busy(errno.EAGAIN, request.what, "the list kept changing while it was read")

    def _dump_once(self, request: Request, parse: Callable[[bytes], R]) -> list[R] | None:
        wanted, interrupted = self._send([request], 0), False
        found: list[R] = []
        while True:
            for kind, flags, sequence, payload in self._receive():
                if sequence != wanted:
                    continue
                interrupted = interrupted or bool(flags & nlmsg.NLM_F_DUMP_INTR)
                if kind == nlmsg.NLMSG_ERROR:
                    raise from_errno(-_ERROR.unpack_from(payload)[0] or errno.EIO, request.what)
                if kind == nlmsg.NLMSG_DONE:
                    return None if interrupted else found
                found.append(parse(payload))

    def links(self) -> list[Link]:
        """All devices."""
        return self.dump(rtnl.dump_links(), rtnl.parse_link)

    def addresses(self, index: int | None = None, *, family: int = 0) -> list[Address]:
        """The addresses of one device or of all, of one family (AF_INET, AF_INET6) or of both."""
        found = self.dump(rtnl.dump_addresses(index or 0, family=family), rtnl.parse_address)
        return [address for address in found if index is None or address.index == index]

    def routes(self, *, protocol: int | None = None, family: int = 0) -> list[Route]:
        """All unicast routes of the main tables (of both families or one), or those of one protocol."""
        found: list[Route | None] = []
        for one in (family,) if family else (socket.AF_INET, socket.AF_INET6):
            found += self.dump(rtnl.dump_routes(one), rtnl.parse_route)
        return [r for r in found if r is not None and (protocol is None or r.protocol == protocol)]

    def neighbours(self, index: int) -> list[Neighbour]:
        """ARP and ND entries of one device."""
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            found += self.dump(rtnl.dump_neighbours(family, index), rtnl.parse_neighbour)
        return [entry for entry in found if entry.index == index]

    def fdb(self, index: int) -> list[Neighbour]:
        """Forwarding entries of one bridge port or VXLAN device."""
        found = self.dump(rtnl.dump_neighbours(rtnl.AF_BRIDGE, index), rtnl.parse_neighbour)
        return [entry for entry in found if entry.index == index]


def nftables_generation() -> int:
    """A number that changes with every nftables transaction, whoever made it (iptables-nft's too).

    Raises:
        NotFound: this kernel has no nftables.
        HostError: it does not answer.
    """
    what = "read the nftables generation"
    generation = _ask_nftables(_NFT_MSG_GETGEN, socket.AF_UNSPEC, b"", what).get(_NFTA_GEN_ID)
    if generation is None:
        raise NotFound(errno.ENOENT, what, "the kernel's answer has none")
    return int.from_bytes(generation, "big")


def nftables_counter(table: str, name: str) -> int:
    """How many packets a named counter of an `inet` table has counted.

    Raises:
        NotFound: there is no such counter.
        HostError: the kernel does not answer.
    """
    names = ((_NFTA_OBJ_TABLE, table), (_NFTA_OBJ_NAME, name))
    body = b"".join(nlmsg.attr(kind, text.encode() + b"\0") for kind, text in names)
    body += nlmsg.attr(_NFTA_OBJ_TYPE, struct.pack(">I", _NFT_OBJECT_COUNTER))
    answer = _ask_nftables(_NFT_MSG_GETOBJ, _NFPROTO_INET, body, f"read the counter {name} of {table}")
    counted = {kind & _ATTRIBUTE: value for kind, value in nlmsg.attrs(answer.get(_NFTA_OBJ_DATA, b""))}
    return int.from_bytes(counted.get(_NFTA_COUNTER_PACKETS, b""), "big")


def _ask_nftables(message: int, family: int, body: bytes, what: str) -> dict[int, bytes]:
    """The attributes of the kernel's one answer."""
    kind = (_NFNL_SUBSYS_NFTABLES << 8) | message
    general = struct.pack("=BBH", family, 0, 0)
    length = _HEADER.size + len(general) + len(body)
    try:
        with _netfilter_socket() as sock:
            sock.send(_HEADER.pack(length, kind, nlmsg.NLM_F_REQUEST, 1, 0) + general + body)
            data = sock.recv(8192)
    except OSError as exc:
        raise from_oserror(exc, what) from exc
    if _HEADER.unpack_from(data)[1] == nlmsg.NLMSG_ERROR:
        raise from_errno(-_ERROR.unpack_from(data, _HEADER.size)[0], what)
    found = nlmsg.attrs(data, _HEADER.size + len(general))
    return {attribute & _ATTRIBUTE: value for attribute, value in found}


def netfilter_batch(batch: bytes, count: int, what: str) -> list[int]:
    """Send a batch of nfnetlink messages (all or nothing); the errno of each of `count` that asked for an
    answer, 0 where it was taken. In the calling thread's network namespace.

    Raises:
        HostError: it cannot be sent, or is not answered.
    """
    codes: list[int] = []
    try:
        with _netfilter_socket() as sock:
            sock.send(batch)
            while len(codes) < count:
                data, start = sock.recv(_RECEIVE_BYTES), 0
                while start + _HEADER.size + _ERROR.size <= len(data):
                    length, kind, *_ = _HEADER.unpack_from(data, start)
                    if kind == nlmsg.NLMSG_ERROR:
                        codes.append(-_ERROR.unpack_from(data, start + _HEADER.size)[0])
                    start += (max(length, _HEADER.size) + 3) & ~3
    except OSError as exc:
        raise from_oserror(exc, what) from exc
    return codes


def _netfilter_socket() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    sock.settimeout(_ANSWER_SECONDS)
    sock.bind((0, 0))
    return sock
