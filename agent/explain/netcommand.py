"""`nodelet net`: the pod network as this node's kernel has it. Needs root.

The API is never asked, and the agent only for what `trace` cannot read in the kernel: names of other nodes'
pods, and which node an address belongs to. It need not run.

nodelet net ls                          every pod's device, MAC and addresses
nodelet net peers                       the other nodes' ranges, and the entries that lead there
nodelet net trace FROM TO [--port N]    the hops of a packet, up to the one that fails
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from agent.config.flags import Options
from agent.explain import command, nettables, nettargets, nettrace
from agent.explain.documents import SOCKET, Known
from agent.explain.nettables import Tables
from agent.explain.nettrace import Hop, Question
from cni.vxlan import ROUTE_PROTOCOL
from host.errors import InputError

_PORT = 80


def main(argv: Sequence[str]) -> int:
    """Run `net`; 0 when it worked, 1 when the traced packet is lost."""
    arguments = _parser().parse_args(argv)
    tables = nettables.read()
    if arguments.command == "ls":
        print(listing(tables))
    elif arguments.command == "peers":
        print(peers(tables))
    else:
        hops = nettrace.trace(tables, _question(tables, arguments))
        print(way(hops))
        return 0 if all(hop.ok for hop in hops) else 1
    return 0


def _question(tables: Tables, arguments: argparse.Namespace) -> Question:
    socket = Path(arguments.root_dir) / SOCKET

    def ask(word: str) -> list[Known]:
        try:
            text = command.fetch(socket, f"/names?word={quote(word, safe='')}")
        except InputError:
            return []  # no agent: then the kernel's tables have to do
        return msgspec.json.decode(text, type=list[Known])

    source = nettargets.find(tables, arguments.source, ask)
    target = nettargets.find(tables, arguments.target, ask)
    if source.address.version != target.address.version:
        raise InputError(f"{source.address} and {target.address} are not of one IP family")
    return Question(
        source=source.address,
        target=target.address,
        protocol=arguments.protocol or target.protocol or "tcp",
        port=arguments.port or target.port or _PORT,
        service=target.service,
        nodes={end.address: end.node for end in (source, target) if end.node is not None},
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nodelet net", description="the pod network in this node's kernel")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ls", help="every pod's device, MAC and addresses")
    commands.add_parser("peers", help="the other nodes' ranges, and the entries that lead there")
    trace = commands.add_parser("trace", help="the hops of a packet, up to the one that fails")
    words = "an address, [NAMESPACE/]NAME of a pod or Service, pod/… or svc/… where both exist; then [:PORT]"
    trace.add_argument("source", metavar="FROM", help=words)
    trace.add_argument("target", metavar="TO", help="the same")
    trace.add_argument("--port", type=int, default=0, help=f"the port at TO (a Service's own, or {_PORT})")
    trace.add_argument("--protocol", choices=("tcp", "udp", "sctp"), default="", help="tcp, or the Service's")
    trace.add_argument("--root-dir", default=Options.root_dir, help=f"the agent's root ({Options.root_dir})")
    return parser


def listing(tables: Tables) -> str:
    """The table of `ls`. Pure."""
    rows = []
    for port in tables.pods:
        bridge = tables.link(port.link.master)
        entries = [tables.neighbour(bridge.index, ip) for ip in port.ips] if bridge else []
        macs = dict.fromkeys(entry.mac for entry in entries if entry)
        state = "up" if port.link.up and bridge else "down" if bridge else "in no bridge"
        addresses = ",".join(map(str, port.ips))
        rows.append(
            (port.pod or "-", port.link.name, state, ",".join(macs) or "-", addresses, port.sandbox[:13])
        )
    return _columns(("POD", "VETH", "STATE", "MAC", "LEASE", "SANDBOX"), rows)


def peers(tables: Tables) -> str:
    """The table of `peers`: routes to ranges behind tunnels or gateways. Pure."""
    rows = []
    for route in sorted(tables.routes, key=lambda r: (r.destination.version, r.destination)):
        device = tables.link(route.index)
        if device is None or route.destination.prefixlen == 0:
            continue
        if device.kind == "wireguard" and route.protocol == ROUTE_PROTOCOL:
            peer = tables.peer(device.index, route.destination)
            rows.append((str(route.destination), device.name, "-", str(peer.host) if peer else "missing"))
        if route.gateway is None:
            continue
        if device.kind == "vxlan":
            entry = tables.neighbour(device.index, route.gateway)
            mac = entry.mac if entry else "missing"
            found = [
                one.address for one in tables.fdb.get(device.index, ()) if one.mac == mac and one.address
            ]
            rows.append((str(route.destination), device.name, mac, str(found[0]) if found else "missing"))
        else:
            rows.append((str(route.destination), device.name, "-", str(route.gateway)))
    return _columns(("RANGE", "DEVICE", "MAC", "NODE"), rows)


def way(hops: Iterable[Hop]) -> str:
    """The hops, a line each. Pure."""
    return "\n".join(f"{'ok  ' if hop.ok else 'LOST'}  {hop.table:9}  {hop.text}" for hop in hops)


def _columns(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    table = [header, *rows]
    widths = [max(len(row[n]) for row in table) for n in range(len(header))]
    return "\n".join(
        "  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in table
    )
