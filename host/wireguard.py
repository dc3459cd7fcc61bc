"""WireGuard devices over generic netlink: whose key a device has, and which peers.

A peer's allowed ranges work both ways: packets to them go to that peer, and it may only send from them.

Layouts: linux/wireguard.h, linux/genetlink.h.
"""

from __future__ import annotations

import base64
import errno
import ipaddress
import itertools
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from host import nlmsg, rtnl
from host.errors import HostError, InputError, NotFound, from_errno, from_oserror
from host.nlmsg import attr, nest
from host.rtnl import IPAddress, IPNetwork

KIND = "wireguard"
KEY_BYTES = 32
_NETLINK_GENERIC, _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY = 16, 16, 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 1, 2
_WG_CMD_GET_DEVICE, _WG_CMD_SET_DEVICE, _WG_VERSION = 0, 1, 1
_A_IFNAME, _A_PRIVATE_KEY, _A_PUBLIC_KEY, _A_LISTEN_PORT, _A_PEERS = 2, 3, 4, 6, 8
_P_PUBLIC_KEY, _P_FLAGS, _P_ENDPOINT, _P_ALLOWED = 1, 3, 4, 9
_P_REMOVE_ME, _P_REPLACE_ALLOWED = 1, 2
_I_FAMILY, _I_ADDRESS, _I_MASK = 1, 2, 3
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_GENERIC = struct.Struct("=BBH")  # command, version, reserved
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_ENDPOINTS = {socket.AF_INET: struct.Struct("=H2s4s8x"), socket.AF_INET6: struct.Struct("=H2s4x16s4x")}
_BATCH = 64  # peers in one message, whose attributes end at 64 KiB
_RECEIVE_BYTES = 1 << 18
_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, order=True)
class Tunnel:
    """A peer of a device: its public key (base64), where it is, and the ranges that are behind it."""

    key: str
    host: IPAddress
    port: int
    ranges: tuple[IPNetwork, ...]


@dataclass(frozen=True)
class DeviceFacts:
    """What the kernel says of a device; `key` is its public key in base64, '' where it has none."""

    key: str
    port: int
    tunnels: frozenset[Tunnel]


def key_bytes(text: str) -> bytes:
    """The 32 bytes of a key in base64. Raises InputError."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise InputError(f"{text[:60]!r} is not a WireGuard key: 32 bytes in base64")
    return raw


def set_key(name: str, private: bytes, port: int) -> bytes:
    """The body of a request that gives a device its private key and its UDP port. Pure."""
    parts = (_name(name), attr(_A_PRIVATE_KEY, private), attr(_A_LISTEN_PORT, struct.pack("=H", port)))
    return b"".join(parts)


def set_tunnels(name: str, tunnels: Iterable[Tunnel], *, remove: bool = False) -> bytes:
    """The body of a request that adds peers or changes them, or removes them. Pure."""
    peers = b"".join(nest(0, *_peer(tunnel, remove)) for tunnel in tunnels)
    return _name(name) + nest(_A_PEERS, peers)


def _name(name: str) -> bytes:
    return attr(_A_IFNAME, rtnl.name_bytes(name))


def _peer(tunnel: Tunnel, remove: bool) -> Iterator[bytes]:
    yield attr(_P_PUBLIC_KEY, key_bytes(tunnel.key))
    yield attr(_P_FLAGS, struct.pack("=I", _P_REMOVE_ME if remove else _P_REPLACE_ALLOWED))
    if remove:
        return
    family = _FAMILIES[tunnel.host.version]
    port = struct.pack("!H", tunnel.port)
    yield attr(_P_ENDPOINT, _ENDPOINTS[family].pack(family, port, tunnel.host.packed))
    yield nest(_P_ALLOWED, *(nest(0, *_allowed(net)) for net in tunnel.ranges))


def _allowed(net: IPNetwork) -> Iterator[bytes]:
    yield attr(_I_FAMILY, struct.pack("=H", _FAMILIES[net.version]))
    yield attr(_I_ADDRESS, net.network_address.packed)
    yield attr(_I_MASK, bytes([net.prefixlen]))


def parse(bodies: Iterable[bytes]) -> DeviceFacts:
    """The facts in the messages of a dump; a peer with very many ranges may be spread over several. Pure."""
    key, port = "", 0
    hosts: dict[str, tuple[IPAddress, int]] = {}
    ranges: dict[str, list[IPNetwork]] = {}
    for body in bodies:
        found = dict(nlmsg.attrs(body))
        key = _text(found.get(_A_PUBLIC_KEY, b"")) or key
        port = struct.unpack("=H", found[_A_LISTEN_PORT])[0] if _A_LISTEN_PORT in found else port
        for _, raw in nlmsg.attrs(found.get(_A_PEERS, b"")):
            peer = dict(nlmsg.attrs(raw))
            name = _text(peer[_P_PUBLIC_KEY])
            if _P_ENDPOINT in peer:
                hosts[name] = _endpoint(peer[_P_ENDPOINT])
            ranges.setdefault(name, []).extend(_nets(peer.get(_P_ALLOWED, b"")))
    nowhere = (ipaddress.ip_address("0.0.0.0"), 0)  # noqa: S104 - an endpoint that is not set
    tunnels = (
        Tunnel(name, *hosts.get(name, nowhere), tuple(sorted(nets, key=str))) for name, nets in ranges.items()
    )
    return DeviceFacts(key, port, frozenset(tunnels))


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode() if any(raw) else ""


def _endpoint(raw: bytes) -> tuple[IPAddress, int]:
    _, port, address = _ENDPOINTS[socket.AddressFamily(struct.unpack_from("=H", raw)[0])].unpack_from(raw)
    return ipaddress.ip_address(address), int.from_bytes(port, "big")


def _nets(raw: bytes) -> Iterator[IPNetwork]:
    for _, each in nlmsg.attrs(raw):
        found = dict(nlmsg.attrs(each))
        yield ipaddress.ip_network((found[_I_ADDRESS], found[_I_MASK][0]))


class WireGuard:
    """The WireGuard devices of the calling thread's network namespace.

    Close it, or use it as a context manager. All methods raise HostError types.
    """

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_GENERIC)
            self._socket.settimeout(_ANSWER_SECONDS)
            self._socket.bind((0, 0))
        except OSError as exc:
            raise from_oserror(exc, "open a generic netlink socket") from exc
        self._sequence = itertools.count(1)
        self._family = 0

    def __enter__(self) -> WireGuard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        self._socket.close()

    def facts(self, name: str) -> DeviceFacts:
        """A device's key, port and peers. Raises NotFound: no such device, or no WireGuard here."""
        flags = nlmsg.NLM_F_REQUEST | nlmsg.NLM_F_DUMP
        return parse(self._ask(_WG_CMD_GET_DEVICE, flags, _name(name), f"ask for WireGuard device {name}"))

    def set_key(self, name: str, private: bytes, port: int) -> None:
        """Give a device its private key and port."""
        self._change(set_key(name, private, port), f"set the key of {name}")

    def set_tunnels(self, name: str, tunnels: Iterable[Tunnel], *, remove: bool = False) -> None:
        """Add peers, change them, or remove them."""
        verb = "remove peers of" if remove else "set peers of"
        every = list(tunnels)
        for start in range(0, len(every), _BATCH):
            part = every[start : start + _BATCH]
            self._change(set_tunnels(name, part, remove=remove), f"{verb} {name}")

    def _change(self, body: bytes, what: str) -> None:
        self._ask(_WG_CMD_SET_DEVICE, nlmsg.NLM_F_REQUEST | nlmsg.NLM_F_ACK, body, what)

    def _ask(self, command: int, flags: int, body: bytes, what: str) -> list[bytes]:
        if not self._family:
            self._family = self._find_family()
        return self._send(self._family, flags, _GENERIC.pack(command, _WG_VERSION, 0) + body, what)

    def _find_family(self) -> int:
        what = "find WireGuard in this kernel"
        body = _GENERIC.pack(_CTRL_CMD_GETFAMILY, 1, 0) + attr(_CTRL_ATTR_FAMILY_NAME, b"wireguard\0")
        flags = nlmsg.NLM_F_REQUEST | nlmsg.NLM_F_ACK
        for answer in self._send(_GENL_ID_CTRL, flags, body, what):
            found = dict(nlmsg.attrs(answer)).get(_CTRL_ATTR_FAMILY_ID)
            if found is not None:
                return int(struct.unpack("=H", found)[0])
        raise NotFound(errno.ENOENT, what, "modprobe wireguard")

    def _send(self, kind: int, flags: int, body: bytes, what: str) -> list[bytes]:
        """One message and its answers, without headers; until the kernel says that it is done."""
        sequence = next(self._sequence)
        answers: list[bytes] = []
        try:
            self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body)
            while True:
                data, start = self._socket.recv(_RECEIVE_BYTES), 0
                while start + _HEADER.size <= len(data):
                    length, type_, _, number, _ = _HEADER.unpack_from(data, start)
                    payload = data[start + _HEADER.size : start + length]
                    start += (max(length, _HEADER.size) + 3) & ~3
                    if number != sequence:
                        continue
                    if type_ == nlmsg.NLMSG_DONE:
                        return answers
                    if type_ == nlmsg.NLMSG_ERROR:
                        code = -struct.unpack_from("=i", payload)[0]
                        if code:
                            raise from_errno(code, what)
                        return answers
                    answers.append(payload[_GENERIC.size :])
        except HostError:
            raise
        except TimeoutError as exc:
            raise from_errno(errno.ETIMEDOUT, what) from exc
        except OSError as exc:
            raise from_oserror(exc, what) from exc
