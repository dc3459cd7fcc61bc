"""`nodelet net`: the pod network as this node's kernel has it. Needs root; neither agent nor API is asked.

nodelet net ls                          every pod's device, MAC and addresses
nodelet net peers                       the other nodes' ranges, and the entries that lead there
nodelet net trace FROM TO [--port N]    the hops of a packet, up to the one that fails
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from agent.explain import nettables, nettrace
from agent.explain.nettables import Tables
from agent.explain.nettrace import Hop


def main(argv: Sequence[str]) -> int:
    """Run `net`; 0 when it worked, 1 when the traced packet is lost."""
    arguments = _parser().parse_args(argv)
    tables = nettables.read()
    if arguments.command == "ls":
        print(listing(tables))
    elif arguments.command == "peers":
        print(peers(tables))
    else:
        source, _ = nettables.find(tables, arguments.source)
        target, _ = nettables.find(tables, arguments.target)
        hops = nettrace.trace(tables, source, target, protocol=arguments.protocol, port=arguments.port)
        print(way(hops))
        return 0 if hops[-1].ok else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nodelet net", description="the pod network in this node's kernel")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ls", help="every pod's device, MAC and addresses")
    commands.add_parser("peers", help="the other nodes' ranges, and the entries that lead there")
    trace = commands.add_parser("trace", help="the hops of a packet, up to the one that fails")
    trace.add_argument("source", metavar="FROM", help="a pod of this node ([NAMESPACE/]POD) or an address")
    trace.add_argument("target", metavar="TO", help="the same, or the address of a Service")
    trace.add_argument("--port", type=int, default=80, help="the port at TO (80)")
    trace.add_argument("--protocol", choices=("tcp", "udp", "sctp"), default="tcp")
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
        if route.gateway is None or device is None or route.destination.prefixlen == 0:
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
