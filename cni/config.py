"""The network configuration: what the agent writes into /etc/cni/net.d, and its strict reading in the plugin.

Everything the plugin is told from outside passes through `parse_config` and `parse_attachment`, which accept
or name the field that is wrong; the rest of the package works with their frozen results.

Not for: finding configuration files, which is the runtime's part of CNI.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni import errors
from cni.errors import CniError
from cni.runtimeconfig import RuntimeConfig, invalid, parse_runtime_config, parse_static_mac
from host import rtnl
from host.errors import InputError
from host.rtnl import IPAddress, IPInterface, IPNetwork

CONFLIST_NAME = "10-nodelet.conflist"
PLUGIN_TYPE = "nodelet-cni"
NETWORK = "nodelet"
ALIAS = "nodelet"
"""First word of the alias of a pod's host end."""
STATE_DIR = "/var/lib/cni/nodelet"
BRIDGE = "cbr0"
HOST_LOCAL_DIR = "/var/lib/cni/networks"
"""Where the reference IPAM plugin keeps its addresses unless it is told otherwise."""

NO_POD_CIDR = "node has no podCIDR; controller-manager needs --allocate-node-cidrs"
"""The one message for a node that has not been given a pod range; also the reason of NetworkReady=false."""

CAPABILITIES = ("portMappings", "bandwidth", "ips", "dns", "mac")
"""What a runtime may ask for a single pod (see cni.runtimeconfig)."""

SUPPORTED_VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_IFNAME = re.compile(r"[A-Za-z0-9_.@-]{1,15}")
_SMALLEST_SUBNET = {4: 30, 6: 126}  # a gateway, a pod, and the two that are never handed out


@dataclass(frozen=True)
class NetworkConfig:
    """One network as ADD needs it."""

    name: str
    cni_version: str
    bridge: str
    mtu: int  # bytes, 0: leave the kernel's default
    subnets: tuple[IPNetwork, ...]  # at most one of each IP family
    cluster_cidrs: tuple[IPNetwork, ...]
    masquerade: bool
    hairpin: bool
    state_dir: Path
    not_masqueraded: tuple[IPNetwork, ...] = ()  # beside cluster_cidrs: reached with the pod's own address
    spoof_protection: bool = True
    host_local_dir: Path | None = None  # where a host-local plugin of before may hold addresses
    pod: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass(frozen=True)
class Attachment:
    """One interface of one container: the key of everything the plugin makes."""

    container_id: str
    ifname: str


def render_conflist(
    pod_cidrs: Sequence[str],
    *,
    cluster_cidrs: Sequence[str] = (),
    mtu: int = 0,
    name: str = NETWORK,
    bridge: str = BRIDGE,
    state_dir: str = STATE_DIR,
    masquerade: bool = True,
    not_masqueraded: Sequence[str] = (),
    hairpin: bool = True,
) -> bytes:
    """The conflist for a node with these pod CIDRs, as JSON bytes with a newline at the end.

    Deterministic: equal input gives equal bytes, so a writer can compare before it writes (with
    host.files.write_atomic and mode 0o644).

    Args:
        pod_cidrs: Node.spec.podCIDRs, at most one of each family.
        cluster_cidrs: ranges reached without masquerading, that is all pods of the cluster.
        mtu: of pod interfaces, in bytes; 0 for the bridge's default of 1500.
        name: of the network; also the folder of its leases.
        bridge: device that joins the node's pods.
        state_dir: where the plugin keeps its leases.
        masquerade: whether pods get the node's address towards the outside.
        not_masqueraded: ranges of the outside that see the pods' own addresses all the same.
        hairpin: whether a pod reaches itself through a service.

    Raises:
        InputError: a range that cannot be used; NO_POD_CIDR where there is none.
    """
    if not pod_cidrs:
        raise InputError(NO_POD_CIDR)
    plugin = {
        "type": PLUGIN_TYPE,
        "bridge": bridge,
        "mtu": mtu,
        "subnets": list(pod_cidrs),
        "clusterCIDRs": list(cluster_cidrs),
        "ipMasq": masquerade,
        "nonMasqueradeCIDRs": list(not_masqueraded),
        "hairpinMode": hairpin,
        "stateDir": state_dir,
        "hostLocalDir": HOST_LOCAL_DIR,
        "capabilities": dict.fromkeys(CAPABILITIES, True),
    }
    # Runtimes older than specification 1.1 know only cniVersion; newer ones take the highest of the list.
    conflist = {
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": name,
        "plugins": [plugin],
    }
    try:
        parse_config({**plugin, "cniVersion": "1.0.0", "name": name})
    except CniError as exc:
        raise InputError(str(exc)) from exc
    return json.dumps(conflist, indent=2).encode() + b"\n"


def parse_config(config: Mapping[str, Any], args: Mapping[str, str] | None = None) -> NetworkConfig:
    """The plugin's configuration from its JSON object, and the pairs of CNI_ARGS.

    Raises:
        CniError: 1, 2 or 7, naming the field.
    """
    version = _text(config, "cniVersion", "0.3.1")
    if version not in SUPPORTED_VERSIONS:
        raise CniError(
            errors.INCOMPATIBLE_VERSION,
            f"cniVersion {version!r} is not supported",
            f"supported: {', '.join(SUPPORTED_VERSIONS)}",
        )
    subnets = _networks(config, "subnets")
    if not subnets:
        raise CniError(errors.INVALID_CONFIG, "subnets is empty", NO_POD_CIDR)
    for subnet in subnets:
        if subnet.prefixlen > _SMALLEST_SUBNET[subnet.version]:
            raise invalid("subnets", f"{subnet} has no room for pods")
    if len({subnet.version for subnet in subnets}) != len(subnets):
        raise invalid("subnets", "more than one range of the same IP family")
    name, bridge = _text(config, "name", ""), _text(config, "bridge", BRIDGE)
    if not _NAME.fullmatch(name):
        raise invalid("name", f"{name[:80]!r} is not 1 to 64 of A-Z a-z 0-9 _ . -")
    if not _IFNAME.fullmatch(bridge):
        raise invalid("bridge", f"{bridge[:80]!r} is not a device name")
    mtu = config.get("mtu", 0)
    if not isinstance(mtu, int) or isinstance(mtu, bool) or not (mtu == 0 or 576 <= mtu <= 65535):
        raise invalid("mtu", f"{mtu!r} is neither 0 nor 576 to 65535 bytes")
    static_mac = parse_static_mac(config, args or {})
    pod = parse_runtime_config(config.get("runtimeConfig"), static_mac=static_mac)
    _check_requested(pod, subnets)
    return NetworkConfig(
        name=name,
        cni_version=version,
        bridge=bridge,
        mtu=mtu,
        subnets=subnets,
        cluster_cidrs=_networks(config, "clusterCIDRs"),
        masquerade=_flag(config, "ipMasq", True),
        hairpin=_flag(config, "hairpinMode", True),
        state_dir=_folder(config, "stateDir", STATE_DIR),
        not_masqueraded=_networks(config, "nonMasqueradeCIDRs"),
        spoof_protection=_flag(config, "spoofProtection", True),
        host_local_dir=_folder(config, "hostLocalDir", "/") if config.get("hostLocalDir") else None,
        pod=pod,
    )


def _check_requested(pod: RuntimeConfig, subnets: tuple[IPNetwork, ...]) -> None:
    for address in pod.addresses:
        subnet = next((subnet for subnet in subnets if address in subnet), None)
        if subnet is None:
            raise invalid("ips", f"{address} is in none of {', '.join(map(str, subnets))}")
        last = subnet.broadcast_address if subnet.version == 4 else None
        if address in (subnet.network_address, subnet.network_address + 1, last):
            raise invalid("ips", f"{address} is not for pods: network, gateway or broadcast address")


def gateway(subnet: IPNetwork) -> IPInterface:
    """The bridge's own address in a range: the first, which pods use as their gateway. Pure."""
    return ipaddress.ip_interface((subnet.network_address + 1, subnet.prefixlen))


def mac_for(address: IPAddress) -> str:
    """A locally administered MAC that follows from an address: 0a:58 and its last four bytes. Pure."""
    return rtnl.mac_text(b"\x0a\x58" + address.packed[-4:])


def parse_attachment(container_id: str, ifname: str) -> Attachment:
    """The attachment of a command. Raises CniError 4, naming the variable."""
    if not _CONTAINER_ID.fullmatch(container_id):
        problem = f"CNI_CONTAINERID {container_id[:80]!r} is not 1 to 128 of A-Z a-z 0-9 _ . -"
        raise CniError(errors.INVALID_ENVIRONMENT, problem)
    try:
        rtnl.name_bytes(ifname)
    except InputError as exc:
        raise CniError(errors.INVALID_ENVIRONMENT, f"CNI_IFNAME is {exc}") from exc
    if not _IFNAME.fullmatch(ifname) or ifname == "lo":
        raise CniError(errors.INVALID_ENVIRONMENT, f"CNI_IFNAME {ifname!r} cannot be used")
    return Attachment(container_id, ifname)


def valid_attachments(config: Mapping[str, Any]) -> frozenset[Attachment]:
    """What GC shall keep (`cni.dev/valid-attachments`; libcni 1.2.0 to 1.2.2 wrote `cni.dev/attachments`).

    Raises:
        CniError: 7, also where the list is missing: that must not mean that nothing is valid.
    """
    listed = config.get("cni.dev/valid-attachments", config.get("cni.dev/attachments"))
    if not isinstance(listed, list):
        raise invalid("cni.dev/valid-attachments", "GC needs the list")
    found = set()
    for entry in listed:
        if not isinstance(entry, Mapping):
            raise invalid("cni.dev/valid-attachments", f"{entry!r} is not an object")
        found.add(parse_attachment(_text(entry, "containerID", ""), _text(entry, "ifname", "")))
    return frozenset(found)


def _text(config: Mapping[str, Any], name: str, default: str) -> str:
    value = config.get(name, default)
    if not isinstance(value, str):
        raise invalid(name, f"{value!r} is not a string")
    return value


def _folder(config: Mapping[str, Any], name: str, default: str) -> Path:
    folder = Path(_text(config, name, default))
    if not folder.is_absolute() or ".." in folder.parts or not str(folder).isprintable():
        raise invalid(name, f"{str(folder)[:80]!r} is not an absolute path")
    return folder


def _flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise invalid(name, f"{value!r} is neither true nor false")
    return value


def _networks(config: Mapping[str, Any], name: str) -> tuple[IPNetwork, ...]:
    values = config.get(name) or []
    if not isinstance(values, list):
        raise invalid(name, "not a list")
    try:
        return tuple(ipaddress.ip_network(value) for value in values if _is_text(value))
    except ValueError as exc:
        raise invalid(name, str(exc)) from exc


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")  # ip_network would take a number for an address
    return True
