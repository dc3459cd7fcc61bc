"""rtnetlink messages as values: requests to send and records to read. No socket in here.

Why not pyroute2 for these: its synchronous calls run an event loop each (0.4-0.8 ms a request against
0.05 ms), keep one socket per calling thread, refuse to run inside a running loop, and cost 200 ms of import
in an executable that lives 20 ms. The few messages a node needs fit here. In the tests it is the independent
witness: what either makes, both must read alike (tests/contract/test_netlink.py).

Layouts: linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h, if_bridge.h; `man 7 rtnetlink`.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass

from host.errors import InputError
from host.nlmsg import (
    NLA_F_NESTED,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Request,
    attr,
    attrs,
    nest,
)

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30

AF_BRIDGE = 7
IFF_UP = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER = 1, 3, 4, 10
IFLA_LINKINFO, IFLA_NET_NS_FD = 18, 28
IFLA_IFALIAS = 20
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BRPORT_MODE = 4  # hairpin
VETH_INFO_PEER = 1
IFLA_VXLAN_ID, IFLA_VXLAN_LINK, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING = 1, 3, 4, 7
IFLA_VXLAN_PORT, IFLA_VXLAN_LOCAL6 = 15, 17

IFA_ADDRESS, IFA_LOCAL, IFA_F_NODAD = 1, 2, 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_TABLE = 1, 4, 5, 7, 15
RT_TABLE_MAIN, RTPROT_KERNEL, RTPROT_BOOT, RTPROT_STATIC = 254, 2, 3, 4
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RTN_UNICAST, RTNH_F_ONLINK = 0, 253, 1, 4
NDA_DST, NDA_LLADDR, NDA_IFINDEX = 1, 2, 8
NUD_REACHABLE, NUD_PERMANENT = 0x02, 0x80
NTF_SELF = 0x02

_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst/src length, tos, table, protocol, scope, type, flags
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_U16, _U32, _I32, _PORT = struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=i"), struct.Struct("!H")


@dataclass(frozen=True)
class Link:
    """A network device as the kernel lists it (`mac` lower case with colons, '' if it has none)."""

    index: int
    name: str
    kind: str  # bridge, veth, vxlan, …; '' for hardware
    mac: str
    mtu: int
    up: bool
    master: int  # index of its bridge, 0 for none
    alias: str = ""
    data: tuple[tuple[int, bytes], ...] = ()  # IFLA_INFO_DATA
    hairpin: bool | None = None  # None: not the port of a bridge


@dataclass(frozen=True)
class Address:
    """An address of a device, with its prefix length."""

    index: int
    address: IPInterface


@dataclass(frozen=True, order=True)
class Route:
    """A unicast route of the main table."""

    destination: IPNetwork
    index: int
    gateway: IPAddress | None = None
    protocol: int = RTPROT_STATIC
    onlink: bool = False


@dataclass(frozen=True)
class Neighbour:
    """An ARP/ND entry (`address` set) or an FDB entry of a bridge or VXLAN device (`destination`)."""

    index: int
    mac: str
    state: int
    address: IPAddress | None = None


def mac_bytes(mac: str) -> bytes:
    """The six bytes of aa:bb:cc:dd:ee:ff. Raises InputError."""
    try:
        raw = bytes(int(part, 16) for part in mac.split(":") if len(part) == 2)
    except ValueError:
        raw = b""
    if len(raw) != 6 or len(mac) != 17:
        raise InputError(f"not a MAC address: {mac[:40]!r}")
    return raw


def mac_text(raw: bytes) -> str:
    """Bytes as aa:bb:cc:dd:ee:ff."""
    return raw.hex(":")


def name_bytes(name: str) -> bytes:
    """A device name as the kernel takes it. Raises InputError unless it is 1 to 15 plain characters."""
    raw = name.encode(errors="replace")
    if not 1 <= len(raw) <= 15 or name in (".", "..") or any(c in b"/:" or c <= 32 or c > 126 for c in raw):
        raise InputError(f"not a device name: {name[:40]!r} (1 to 15 characters, no '/', ':' or space)")
    return raw + b"\0"


def link_body(*parts: bytes, index: int = 0, up: bool | None = None, family: int = 0) -> bytes:
    """The payload of a request about a device: by index or with its name among `parts`; None: as it is."""
    change = 0 if up is None else IFF_UP
    return _IFINFO.pack(family, 0, index, IFF_UP if up else 0, change) + b"".join(parts)


def _common(mac: str | None, mtu: int | None) -> bytes:
    out = b"" if mac is None else attr(IFLA_ADDRESS, mac_bytes(mac))
    return out if not mtu else out + attr(IFLA_MTU, _U32.pack(mtu))


def get_link(name: str | int) -> Request:
    """Ask for one device by name or index."""
    body = link_body(index=name) if isinstance(name, int) else link_body(attr(IFLA_IFNAME, name_bytes(name)))
    return Request(RTM_GETLINK, 0, body, f"link {name}")


def add_bridge(name: str, *, mac: str, mtu: int | None = None) -> Request:
    """A new bridge device, up."""
    body = link_body(
        attr(IFLA_IFNAME, name_bytes(name)),
        _common(mac, mtu),
        nest(IFLA_LINKINFO, attr(IFLA_INFO_KIND, b"bridge")),
        up=True,
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"add bridge {name}")


def add_veth(
    name: str,
    *,
    peer: str,
    peer_netns: int,
    peer_mac: str | None = None,
    mtu: int | None = None,
    master: int = 0,
) -> Request:
    """A veth pair: our end up and in a bridge, the peer born down in another namespace (an open fd).

    The kernel refuses to bring the peer up here, because it configures it before the two ends are joined.
    """
    far = link_body(
        attr(IFLA_IFNAME, name_bytes(peer)),
        attr(IFLA_NET_NS_FD, _U32.pack(peer_netns)),
        _common(peer_mac, mtu),
    )
    body = link_body(
        attr(IFLA_IFNAME, name_bytes(name)),
        _common(None, mtu),
        attr(IFLA_MASTER, _U32.pack(master)) if master else b"",
        nest(
            IFLA_LINKINFO,
            attr(IFLA_INFO_KIND, b"veth"),
            nest(IFLA_INFO_DATA, attr(VETH_INFO_PEER | NLA_F_NESTED, far)),
        ),
        up=True,
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"add veth {name} to {peer}")


def add_vxlan(
    name: str, *, vni: int, port: int, underlay: int, local: IPAddress, mac: str, mtu: int
) -> Request:
    """A VXLAN device, down, without learning: where a peer is comes from FDB entries only."""
    local_kind = IFLA_VXLAN_LOCAL if local.version == 4 else IFLA_VXLAN_LOCAL6
    data = nest(
        IFLA_INFO_DATA,
        attr(IFLA_VXLAN_ID, _U32.pack(vni)),
        attr(IFLA_VXLAN_LINK, _U32.pack(underlay)),
        attr(local_kind, local.packed),
        attr(IFLA_VXLAN_LEARNING, b"\0"),
        attr(IFLA_VXLAN_PORT, _PORT.pack(port)),
    )
    body = link_body(
        attr(IFLA_IFNAME, name_bytes(name)),
        _common(mac, mtu),
        nest(IFLA_LINKINFO, attr(IFLA_INFO_KIND, b"vxlan"), data),
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"add vxlan {name}")


def add_wireguard(name: str, *, mtu: int) -> Request:
    """A WireGuard device, down, without a key."""
    body = link_body(
        attr(IFLA_IFNAME, name_bytes(name)),
        _common(None, mtu),
        nest(IFLA_LINKINFO, attr(IFLA_INFO_KIND, b"wireguard")),
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"add wireguard {name}")


def set_link(
    name: str,
    *,
    up: bool | None = None,
    mtu: int | None = None,
    mac: str | None = None,
    alias: str | None = None,
    hairpin: bool | None = None,
    master: int = 0,
) -> Request:
    """Change a device found by name; None, or no `master` (index of a bridge), leaves a property alone.

    `hairpin` is that of a bridge port: whether it sends frames back out of the port they came from. `alias`
    is text for people (`ip link` shows it), at most 255 bytes.
    """
    parts = [attr(IFLA_IFNAME, name_bytes(name)), _common(mac, mtu)]
    if master:
        parts.append(attr(IFLA_MASTER, _U32.pack(master)))
    if alias is not None:
        parts.append(attr(IFLA_IFALIAS, alias.encode(errors="replace")[:255]))
    if hairpin is not None:
        mode = nest(IFLA_INFO_SLAVE_DATA, attr(IFLA_BRPORT_MODE, bytes([hairpin])))
        parts.append(nest(IFLA_LINKINFO, attr(IFLA_INFO_SLAVE_KIND, b"bridge"), mode))
    return Request(RTM_NEWLINK, 0, link_body(*parts, up=up), f"set link {name}")


def delete_link(name: str) -> Request:
    """Remove a device (of a veth pair: both ends)."""
    return Request(RTM_DELLINK, 0, link_body(attr(IFLA_IFNAME, name_bytes(name))), f"delete link {name}")


def address(index: int, value: IPInterface, *, remove: bool = False) -> Request:
    """Give an address to a device (keeping it if there), or take it away. IPv6 skips duplicate detection."""
    family = socket.AF_INET if value.version == 4 else socket.AF_INET6
    packed = value.ip.packed
    flags = 0 if value.version == 4 else IFA_F_NODAD
    body = _IFADDR.pack(family, value.network.prefixlen, flags, 0, index)
    body += attr(IFA_LOCAL, packed) + attr(IFA_ADDRESS, packed)
    verb, what = (RTM_DELADDR, "delete") if remove else (RTM_NEWADDR, "add")
    return Request(verb, 0 if remove else NLM_F_CREATE | NLM_F_REPLACE, body, f"{what} address {value}")


def route(value: Route, *, remove: bool = False, source: IPAddress | None = None) -> Request:
    """Set a route (replacing one to the same destination), or remove it."""
    family = socket.AF_INET if value.destination.version == 4 else socket.AF_INET6
    scope = RT_SCOPE_LINK if value.gateway is None and family == socket.AF_INET else RT_SCOPE_UNIVERSE
    body = _RTMSG.pack(
        family,
        value.destination.prefixlen,
        0,
        0,
        RT_TABLE_MAIN,
        value.protocol,
        scope,
        RTN_UNICAST,
        RTNH_F_ONLINK if value.onlink else 0,
    )
    body += attr(RTA_DST, value.destination.network_address.packed) if value.destination.prefixlen else b""
    body += attr(RTA_OIF, _U32.pack(value.index))
    body += b"" if value.gateway is None else attr(RTA_GATEWAY, value.gateway.packed)
    body += b"" if source is None else attr(RTA_PREFSRC, source.packed)
    verb, what = (RTM_DELROUTE, "delete") if remove else (RTM_NEWROUTE, "set")
    flags = 0 if remove else NLM_F_CREATE | NLM_F_REPLACE
    return Request(verb, flags, body, f"{what} route {value.destination}")


def neighbour(
    index: int, target: IPAddress, mac: str, *, state: int = NUD_PERMANENT, remove: bool = False
) -> Request:
    """Set or remove the ARP/ND entry of `target` on a device."""
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    body = _NDMSG.pack(family, index, state, 0, 0) + attr(NDA_DST, target.packed)
    body += b"" if remove else attr(NDA_LLADDR, mac_bytes(mac))
    verb, what = (RTM_DELNEIGH, "delete") if remove else (RTM_NEWNEIGH, "set")
    return Request(
        verb, 0 if remove else NLM_F_CREATE | NLM_F_REPLACE, body, f"{what} neighbour {target} {mac}"
    )


def fdb(index: int, mac: str, target: IPAddress, *, remove: bool = False) -> Request:
    """Set or remove a VXLAN device's entry: frames for `mac` go to the host `target`."""
    body = _NDMSG.pack(AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0)
    body += attr(NDA_LLADDR, mac_bytes(mac)) + attr(NDA_DST, target.packed)
    verb, what = (RTM_DELNEIGH, "delete") if remove else (RTM_NEWNEIGH, "set")
    return Request(verb, 0 if remove else NLM_F_CREATE | NLM_F_REPLACE, body, f"{what} fdb {mac} {target}")


def dump_links() -> Request:
    """All devices."""
    return Request(RTM_GETLINK, NLM_F_DUMP, link_body(), "list links")


def dump_addresses(index: int = 0, *, family: int = 0) -> Request:
    """The addresses of one device or of all, of one family or of both."""
    return Request(RTM_GETADDR, NLM_F_DUMP, _IFADDR.pack(family, 0, 0, 0, index), "list addresses")


def dump_routes(family: int) -> Request:
    """All routes of one family."""
    return Request(RTM_GETROUTE, NLM_F_DUMP, _RTMSG.pack(family, *[0] * 8), "list routes")


def dump_neighbours(family: int, index: int) -> Request:
    """The ARP/ND entries of one device, or with AF_BRIDGE its FDB."""
    if family == AF_BRIDGE:
        body = _NDMSG.pack(family, index, 0, 0, 0)
    else:
        body = _NDMSG.pack(family, 0, 0, 0, 0) + attr(NDA_IFINDEX, _U32.pack(index))
    return Request(RTM_GETNEIGH, NLM_F_DUMP, body, "list neighbours")


def parse_link(body: bytes) -> Link:
    """A Link from the payload of RTM_NEWLINK."""
    _family, _type, index, flags, _change = _IFINFO.unpack_from(body)
    found = dict(attrs(body, _IFINFO.size))
    info = dict(attrs(found.get(IFLA_LINKINFO, b"")))
    port = dict(attrs(info.get(IFLA_INFO_SLAVE_DATA, b"")))
    return Link(
        index=index,
        name=found.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        kind=info.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace"),
        mac=mac_text(found.get(IFLA_ADDRESS, b"")),
        mtu=_number(found.get(IFLA_MTU)),
        up=bool(flags & IFF_UP),
        master=_number(found.get(IFLA_MASTER)),
        alias=found.get(IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace"),
        data=tuple(attrs(info.get(IFLA_INFO_DATA, b""))),
        hairpin=bool(port[IFLA_BRPORT_MODE][0]) if IFLA_BRPORT_MODE in port else None,
    )


def _number(raw: bytes | None) -> int:
    return int(_U32.unpack(raw)[0]) if raw and len(raw) == 4 else 0


def parse_address(body: bytes) -> Address:
    """An Address from the payload of RTM_NEWADDR."""
    _family, prefix, _flags, _scope, index = _IFADDR.unpack_from(body)
    found = dict(attrs(body, _IFADDR.size))
    ip = ipaddress.ip_address(found.get(IFA_LOCAL) or found[IFA_ADDRESS])
    return Address(index, ipaddress.ip_interface((ip, prefix)))


def parse_route(body: bytes) -> Route | None:
    """A Route from the payload of RTM_NEWROUTE; None for other tables and kinds than unicast in main."""
    family, dst_len, _src, _tos, table, protocol, _scope, kind, flags = _RTMSG.unpack_from(body)
    found = dict(attrs(body, _RTMSG.size))
    if (
        kind != RTN_UNICAST
        or _number(found.get(RTA_TABLE)) not in (0, RT_TABLE_MAIN)
        or table > RT_TABLE_MAIN
    ):
        return None
    if family not in (socket.AF_INET, socket.AF_INET6) or RTA_OIF not in found:
        return None
    any_address = bytes(4 if family == socket.AF_INET else 16)
    network = ipaddress.ip_network((found.get(RTA_DST, any_address), dst_len))
    gateway = ipaddress.ip_address(found[RTA_GATEWAY]) if RTA_GATEWAY in found else None
    return Route(network, _number(found[RTA_OIF]), gateway, protocol, bool(flags & RTNH_F_ONLINK))


def parse_neighbour(body: bytes) -> Neighbour:
    """A Neighbour from the payload of RTM_NEWNEIGH, of the ARP/ND tables or of an FDB."""
    _family, index, state, _flags, _type = _NDMSG.unpack_from(body)
    found = dict(attrs(body, _NDMSG.size))
    target = ipaddress.ip_address(found[NDA_DST]) if NDA_DST in found else None
    return Neighbour(index, mac_text(found.get(NDA_LLADDR, b"")), state, target)
