"""What a runtime asks for one pod (`runtimeConfig`): strict reading of the capabilities this plugin has.

    portMappings    host ports
    bandwidth       limits of what a pod receives and sends
    ips             the addresses a pod shall have
    dns             handed on in the result
    mac             the MAC of a pod's interface; without one it follows from the address
    aliases         kept as a note with the lease, and not offered: names are the cluster's DNS's

See CONVENTIONS.md of containernetworking/cni, "Well-known capabilities". Names below a capability count in
any case: containerd says HostPort, Servers and IngressRate (go-cni's structs have no JSON tags), which
plugins written in Go never notice.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cni import errors
from cni.errors import CniError
from host import rtnl
from host.rtnl import IPAddress

_PROTOCOLS = ("tcp", "udp", "sctp")
_MAX_BURST_BITS = 8 * 0xFFFFFFFF
_MAX_RATE_BITS = 1 << 63


@dataclass(frozen=True)
class PortMapping:
    """One host port that leads to a pod's port (capability `portMappings`)."""

    host_port: int
    container_port: int
    protocol: str  # tcp, udp, sctp
    host_ip: IPAddress | None = None  # None: every address of the node


@dataclass(frozen=True)
class Rate:
    """A limit: bits a second, and the bits that may pass at once after a pause."""

    rate: int
    burst: int


@dataclass(frozen=True)
class RuntimeConfig:
    """What one pod asks for."""

    port_mappings: tuple[PortMapping, ...] = ()
    ingress: Rate | None = None  # of what the pod receives; None: no limit
    egress: Rate | None = None  # of what it sends
    addresses: tuple[IPAddress, ...] = ()  # at most one of each IP family
    dns: Mapping[str, list[str]] = field(default_factory=dict, hash=False)  # as a result has it
    mac: str = ""  # lower case; '': it follows from the address
    aliases: tuple[str, ...] = ()


def invalid(name: str, problem: str) -> CniError:
    """The error for a field of the configuration."""
    return CniError(errors.INVALID_CONFIG, f"{name} is invalid", problem)


def parse_runtime_config(value: object, *, static_mac: str = "") -> RuntimeConfig:
    """From `runtimeConfig`, which may be missing. Raises CniError 7, naming the field.

    `static_mac` is the MAC asked for elsewhere (see `parse_static_mac`); the one in `value` counts more.
    """
    runtime = {} if value is None else value
    if not isinstance(runtime, Mapping):
        raise invalid("runtimeConfig", "not an object")
    limits = _object(runtime, "bandwidth")
    return RuntimeConfig(
        port_mappings=_port_mappings(runtime),
        ingress=_rate(limits, "ingress"),
        egress=_rate(limits, "egress"),
        addresses=_addresses(runtime),
        dns=_dns(runtime),
        mac=_mac("mac", runtime.get("mac")) or static_mac,
        aliases=_aliases(runtime),
    )


def parse_static_mac(config: Mapping[str, Any], args: Mapping[str, str]) -> str:
    """The MAC that `args.cni.mac` of the configuration asks for, else MAC of CNI_ARGS; '' for none.

    Both as the reference plugins read them (CONVENTIONS.md, "args in network config" and "CNI_ARGS").
    """
    given = config.get("args") or {}
    if not isinstance(given, Mapping) or not isinstance(cni := given.get("cni") or {}, Mapping):
        raise invalid("args", "not an object with an object cni")
    return _mac("args.cni.mac", cni.get("mac")) or _mac("MAC of CNI_ARGS", args.get("MAC"))


def _mac(name: str, value: object) -> str:
    if value is None or value == "":
        return ""
    try:
        raw = rtnl.mac_bytes(_text(value).lower())
    except ValueError as exc:
        raise invalid(name, str(exc)) from exc
    if raw[0] & 1 or not any(raw):
        raise invalid(name, f"{value} is not the MAC of one interface")
    return rtnl.mac_text(raw)


def _aliases(runtime: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        return tuple(_text(value) for value in _list(runtime, "aliases"))
    except ValueError as exc:
        raise invalid("aliases", str(exc)) from exc


def _object(runtime: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = runtime.get(name) or {}
    if not isinstance(value, Mapping):
        raise invalid(name, "not an object")
    return _any_case(value)


def _any_case(value: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name).lower(): item for name, item in value.items()}


def _list(runtime: Mapping[str, Any], name: str) -> list[Any]:
    value = runtime.get(name) or []
    if not isinstance(value, list):
        raise invalid(name, "not a list")
    return value


def _port_mappings(runtime: Mapping[str, Any]) -> tuple[PortMapping, ...]:
    found = []
    for given in _list(runtime, "portMappings"):
        if not isinstance(given, Mapping):
            raise invalid("portMappings", f"{given!r} is not an object")
        entry = _any_case(given)
        host_port, container_port = entry.get("hostport", 0), entry.get("containerport", 0)
        protocol = str(entry.get("protocol") or "tcp").lower()
        if host_port == 0:
            continue  # CONVENTIONS.md of CNI: a port without host port is only documentation
        for name, port in (("hostPort", host_port), ("containerPort", container_port)):
            if not _is_number(port) or not 1 <= port <= 65535:
                raise invalid(f"portMappings.{name}", f"{port!r} is not 1 to 65535")
        if protocol not in _PROTOCOLS:
            raise invalid("portMappings.protocol", f"{protocol[:20]!r} is not one of {', '.join(_PROTOCOLS)}")
        found.append(PortMapping(host_port, container_port, protocol, _host_ip(entry.get("hostip"))))
    return tuple(found)


def _host_ip(value: object) -> IPAddress | None:
    if not value:
        return None
    try:
        host_ip = ipaddress.ip_address(str(value))
    except ValueError as exc:
        raise invalid("portMappings.hostIP", str(exc)) from exc
    return None if host_ip.is_unspecified else host_ip


def _rate(limits: Mapping[str, Any], direction: str) -> Rate | None:
    rate, burst = limits.get(f"{direction}rate", 0), limits.get(f"{direction}burst", 0)
    for name, value, most in (("Rate", rate, _MAX_RATE_BITS), ("Burst", burst, _MAX_BURST_BITS)):
        if not _is_number(value) or not 0 <= value <= most:
            raise invalid(f"bandwidth.{direction}{name}", f"{value!r} is not 0 to {most} bits")
    if bool(rate) != bool(burst):
        raise invalid(f"bandwidth.{direction}Rate", "rate and burst go together: both 0, or neither")
    return Rate(rate, burst) if rate else None


def _addresses(runtime: Mapping[str, Any]) -> tuple[IPAddress, ...]:
    try:
        found = tuple(ipaddress.ip_interface(_text(value)).ip for value in _list(runtime, "ips"))
    except ValueError as exc:
        raise invalid("ips", str(exc)) from exc
    if len({address.version for address in found}) != len(found):
        raise invalid("ips", "more than one address of the same IP family")
    return found


def _dns(runtime: Mapping[str, Any]) -> dict[str, list[str]]:
    """In the words of a result, which are not those of the capability."""
    dns, found = _object(runtime, "dns"), {}
    for name, result_name in (("servers", "nameservers"), ("searches", "search"), ("options", "options")):
        try:
            if values := [_text(value) for value in _list(dns, name)]:
                found[result_name] = values
        except ValueError as exc:
            raise invalid(f"dns.{name}", str(exc)) from exc
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")  # ip_interface would take a number for an address
    return value
