"""Two libraries behind one interface: what can be made in a network namespace, and what can be seen there."""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Protocol

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from host import rtnl
from host.errors import Exists, NotFound
from host.netlink import Netlink
from host.rtnl import IPAddress, IPInterface, Route

PERMANENT = rtnl.NUD_PERMANENT


class View(Protocol):
    """What can be made, and what can be seen, by whichever library."""

    def index(self, name: str) -> int: ...
    def bridge(self, name: str, *, mac: str, mtu: int) -> None: ...
    def veth(self, name: str, *, peer: str, peer_netns: int, mac: str, mtu: int, master: int) -> None: ...
    def vxlan(self, name: str, *, vni: int, port: int, underlay: int, local: str, mac: str) -> None: ...
    def change(self, name: str, *, up: bool, mtu: int, alias: str) -> None: ...
    def hairpin(self, name: str, on: bool) -> None: ...
    def delete(self, name: str) -> None: ...
    def address(self, index: int, value: IPInterface, *, remove: bool = False) -> None: ...
    def route(self, value: Route, *, remove: bool = False) -> None: ...
    def neighbour(self, index: int, target: IPAddress, mac: str, *, remove: bool = False) -> None: ...
    def fdb(self, index: int, mac: str, target: IPAddress, *, remove: bool = False) -> None: ...
    def links(self) -> dict[str, dict[str, Any]]: ...
    def vxlan_facts(self, name: str) -> dict[str, Any]: ...
    def addresses(self, index: int) -> set[IPInterface]: ...
    def routes(self, index: int) -> set[Route]: ...
    def neighbours(self, index: int) -> set[tuple[IPAddress, str]]: ...
    def fdb_entries(self, index: int) -> set[tuple[str, IPAddress]]: ...


class Ours:
    """host.netlink."""

    absent: type[Exception] = NotFound
    present: type[Exception] = Exists

    def __init__(self) -> None:
        self._netlink = Netlink()

    def close(self) -> None:
        self._netlink.close()

    def index(self, name: str) -> int:
        return self._netlink.get_link(name).index

    def bridge(self, name: str, *, mac: str, mtu: int) -> None:
        self._netlink.execute(rtnl.add_bridge(name, mac=mac, mtu=mtu))

    def veth(self, name: str, *, peer: str, peer_netns: int, mac: str, mtu: int, master: int) -> None:
        self._netlink.execute(
            rtnl.add_veth(name, peer=peer, peer_netns=peer_netns, peer_mac=mac, mtu=mtu, master=master)
        )

    def vxlan(self, name: str, *, vni: int, port: int, underlay: int, local: str, mac: str) -> None:
        where = ip_address(local)
        self._netlink.execute(
            rtnl.add_vxlan(name, vni=vni, port=port, underlay=underlay, local=where, mac=mac, mtu=1450)
        )

    def change(self, name: str, *, up: bool, mtu: int, alias: str) -> None:
        self._netlink.execute(rtnl.set_link(name, up=up, mtu=mtu, alias=alias))

    def hairpin(self, name: str, on: bool) -> None:
        self._netlink.execute(rtnl.set_link(name, hairpin=on))

    def delete(self, name: str) -> None:
        self._netlink.execute(rtnl.delete_link(name))

    def address(self, index: int, value: IPInterface, *, remove: bool = False) -> None:
        self._netlink.execute(rtnl.address(index, value, remove=remove))

    def route(self, value: Route, *, remove: bool = False) -> None:
        self._netlink.execute(rtnl.route(value, remove=remove))

    def neighbour(self, index: int, target: IPAddress, mac: str, *, remove: bool = False) -> None:
        self._netlink.execute(rtnl.neighbour(index, target, mac, remove=remove))

    def fdb(self, index: int, mac: str, target: IPAddress, *, remove: bool = False) -> None:
        self._netlink.execute(rtnl.fdb(index, mac, target, remove=remove))

    def links(self) -> dict[str, dict[str, Any]]:
        return {
            link.name: {
                "index": link.index,
                "kind": link.kind,
                "mac": link.mac,
                "mtu": link.mtu,
                "up": link.up,
                "master": link.master,
                "alias": link.alias,
                "hairpin": link.hairpin,
            }
            for link in self._netlink.links()
        }

    def vxlan_facts(self, name: str) -> dict[str, Any]:
        data = dict(self._netlink.get_link(name).data)
        return {
            "vni": int.from_bytes(data[rtnl.IFLA_VXLAN_ID], "little"),
            "port": int.from_bytes(data[rtnl.IFLA_VXLAN_PORT], "big"),
            "underlay": int.from_bytes(data[rtnl.IFLA_VXLAN_LINK], "little"),
            "local": str(ip_address(data[rtnl.IFLA_VXLAN_LOCAL])),
            "learning": bool(data[rtnl.IFLA_VXLAN_LEARNING][0]),
        }

    def addresses(self, index: int) -> set[IPInterface]:
        return {found.address for found in self._netlink.addresses(index)}

    def routes(self, index: int) -> set[Route]:
        return {route for route in self._netlink.routes() if route.index == index}

    def neighbours(self, index: int) -> set[tuple[IPAddress, str]]:
        found = self._netlink.neighbours(index)
        return {(e.address, e.mac) for e in found if e.address is not None and e.state & PERMANENT}

    def fdb_entries(self, index: int) -> set[tuple[str, IPAddress]]:
        return {(e.mac, e.address) for e in self._netlink.fdb(index) if e.address is not None}


class Witness:
    """pyroute2."""

    absent: type[Exception] = NetlinkError
    present: type[Exception] = NetlinkError

    def __init__(self) -> None:
        self._ip = IPRoute()

    def close(self) -> None:
        self._ip.close()

    def index(self, name: str) -> int:
        return int(self._ip.link("get", ifname=name)[0]["index"])

    def bridge(self, name: str, *, mac: str, mtu: int) -> None:
        self._ip.link("add", ifname=name, kind="bridge", address=mac, mtu=mtu, state="up")

    def veth(self, name: str, *, peer: str, peer_netns: int, mac: str, mtu: int, master: int) -> None:
        far = {"ifname": peer, "net_ns_fd": peer_netns, "address": mac, "mtu": mtu}
        self._ip.link("add", ifname=name, kind="veth", peer=far, mtu=mtu, master=master, state="up")

    def vxlan(self, name: str, *, vni: int, port: int, underlay: int, local: str, mac: str) -> None:
        self._ip.link(
            "add",
            ifname=name,
            kind="vxlan",
            vxlan_id=vni,
            vxlan_port=port,
            vxlan_link=underlay,
            vxlan_local=local,
            vxlan_learning=0,
            address=mac,
            mtu=1450,
        )

    def change(self, name: str, *, up: bool, mtu: int, alias: str) -> None:
        state = "up" if up else "down"
        self._ip.link("set", index=self.index(name), state=state, mtu=mtu, ifalias=alias)

    def hairpin(self, name: str, on: bool) -> None:
        self._ip.brport("set", index=self.index(name), mode=int(on))

    def delete(self, name: str) -> None:
        self._ip.link("del", index=self.index(name))

    def address(self, index: int, value: IPInterface, *, remove: bool = False) -> None:
        verb = "del" if remove else "add"
        self._ip.addr(verb, index=index, address=str(value.ip), prefixlen=value.network.prefixlen)

    def route(self, value: Route, *, remove: bool = False) -> None:
        fields: dict[str, Any] = {"dst": str(value.destination), "oif": value.index, "proto": value.protocol}
        if value.gateway is not None:
            fields["gateway"] = str(value.gateway)
        elif value.destination.version == 4:
            fields["scope"] = rtnl.RT_SCOPE_LINK
        if value.onlink:
            fields["flags"] = rtnl.RTNH_F_ONLINK
        self._ip.route("del" if remove else "replace", **fields)

    def neighbour(self, index: int, target: IPAddress, mac: str, *, remove: bool = False) -> None:
        verb = "del" if remove else "replace"
        self._ip.neigh(verb, ifindex=index, dst=str(target), lladdr=mac, state=PERMANENT)

    def fdb(self, index: int, mac: str, target: IPAddress, *, remove: bool = False) -> None:
        verb = "del" if remove else "replace"
        self._ip.fdb(verb, ifindex=index, lladdr=mac, dst=str(target), flags=rtnl.NTF_SELF)

    def links(self) -> dict[str, dict[str, Any]]:
        found = {}
        for link in self._ip.get_links():
            info = link.get_attr("IFLA_LINKINFO")
            port = info.get_attr("IFLA_INFO_SLAVE_DATA") if info else None
            found[link.get_attr("IFLA_IFNAME")] = {
                "index": link["index"],
                "kind": (info.get_attr("IFLA_INFO_KIND") if info else None) or "",
                "mac": link.get_attr("IFLA_ADDRESS"),
                "mtu": link.get_attr("IFLA_MTU"),
                "up": bool(link["flags"] & rtnl.IFF_UP),
                "master": link.get_attr("IFLA_MASTER") or 0,
                "alias": link.get_attr("IFLA_IFALIAS") or "",
                "hairpin": bool(port.get_attr("IFLA_BRPORT_MODE")) if port else None,
            }
        return found

    def vxlan_facts(self, name: str) -> dict[str, Any]:
        (link,) = self._ip.link("get", ifname=name)
        data = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
        return {
            "vni": data.get_attr("IFLA_VXLAN_ID"),
            "port": data.get_attr("IFLA_VXLAN_PORT"),
            "underlay": data.get_attr("IFLA_VXLAN_LINK"),
            "local": data.get_attr("IFLA_VXLAN_LOCAL"),
            "learning": bool(data.get_attr("IFLA_VXLAN_LEARNING")),
        }

    def addresses(self, index: int) -> set[IPInterface]:
        found = self._ip.get_addr(index=index)
        return {ip_interface(f"{one.get_attr('IFA_ADDRESS')}/{one['prefixlen']}") for one in found}

    def routes(self, index: int) -> set[Route]:
        found = set()
        for family, everything in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            for one in self._ip.get_routes(family=family, table=rtnl.RT_TABLE_MAIN, oif=index):
                if one["type"] != rtnl.RTN_UNICAST:
                    continue
                target = ip_network(f"{one.get_attr('RTA_DST') or everything}/{one['dst_len']}")
                gateway = one.get_attr("RTA_GATEWAY")
                onlink = bool(one["flags"] & rtnl.RTNH_F_ONLINK)
                via = ip_address(gateway) if gateway else None
                found.add(Route(target, index, via, one["proto"], onlink))
        return found

    def neighbours(self, index: int) -> set[tuple[IPAddress, str]]:
        found = [one for f in (socket.AF_INET, socket.AF_INET6) for one in self._ip.get_neighbours(family=f)]
        return {
            (ip_address(one.get_attr("NDA_DST")), one.get_attr("NDA_LLADDR"))
            for one in found
            if one["ifindex"] == index and one["state"] & PERMANENT
        }

    def fdb_entries(self, index: int) -> set[tuple[str, IPAddress]]:
        return {
            (one.get_attr("NDA_LLADDR"), ip_address(one.get_attr("NDA_DST")))
            for one in self._ip.fdb("dump", ifindex=index)
            if one.get_attr("NDA_DST") and one["ifindex"] == index
        }
