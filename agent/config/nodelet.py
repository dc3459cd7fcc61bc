"""NodeletConfiguration: the few settings that have no place in a kubelet's files.

    apiVersion: nodelet/v1alpha1
    kind: NodeletConfiguration
    clusterCIDR: 10.244.0.0/16
    overlay: {backend: vxlan}

Every field is optional. An unknown one is an error that names it.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import msgspec

from agent.config.kubelet import Section
from host.errors import InputError

API_VERSION = "nodelet/v1alpha1"
KIND = "NodeletConfiguration"


class OverlaySettings(Section, frozen=True, kw_only=True):
    """How pods of two nodes reach each other."""

    backend: str = "vxlan"
    """vxlan, wireguard, host-gw, or none (somebody else's CNI plugin does it)."""
    vni: int = 1
    port: int = 8472
    """UDP port of VXLAN; 8472 is what the Linux kernel and flannel use, 4789 is IANA's."""
    iface: str = ""
    """The network device that reaches other nodes, by its name or one of its addresses; empty: the one that
    reaches the API server. It also gives the node its address where --node-ip does not."""
    iface_regex: str = ""
    """The same: the first device whose name or address this expression matches."""
    iface_can_reach: str = ""
    """The same: the device by which this address is reached."""
    device: str = ""
    """Name of the tunnel device; empty: flannel.<vni>, or flannel-wg."""
    wireguard_port: int = 51820
    """UDP port of WireGuard; with IPv6 pods the next one too."""
    direct_routing: bool = False
    """With vxlan: plain routes to nodes of our own subnet, as flannel's DirectRouting; else tunnels."""
    mtu: int = 0
    """MTU of pods; 0: the underlay's, less VXLAN's 50 bytes (70 where pods have IPv6), or WireGuard's 80."""
    masquerade: bool = True
    """Hide pod addresses behind the node's outside of the cluster network."""
    non_masquerade_cidrs: tuple[str, ...] = msgspec.field(default=(), name="nonMasqueradeCIDRs")
    """Ranges outside of it that see pod addresses all the same: a data centre that routes them."""


class CniSettings(Section, frozen=True, kw_only=True):
    """Where CNI things are, and whether we write our own configuration list."""

    conf_dir: str = "/etc/cni/net.d"
    write_config: bool = True
    bridge: str = "cbr0"


class ProxySettings(Section, frozen=True, kw_only=True):
    """The service rules; `mode` none leaves them to a kube-proxy."""

    mode: str = "iptables"
    config: str = ""
    """A KubeProxyConfiguration file whose fields win over the ones here."""
    healthz_port: int = 10256


class NodeletConfiguration(Section, frozen=True, kw_only=True):
    """All of it. Paths are absolute."""

    api_version: str = API_VERSION
    kind: str = KIND
    cluster_cidr: str = msgspec.field(default="", name="clusterCIDR")
    """The network all pods of the cluster have their addresses from, for the masquerade rule."""
    pod_cidr: str = msgspec.field(default="", name="podCIDR")
    """This node's share of it, where no controller sets spec.podCIDR (and in standalone mode)."""
    overlay: OverlaySettings = OverlaySettings()
    cni: CniSettings = CniSettings()
    proxy: ProxySettings = ProxySettings()
    network_policy: str = "auto"
    """auto: enforce NetworkPolicy unless another agent on this node does, or the API server does not let us
    read policies, pods and namespaces. on: enforce in any case. off: never."""
    crash_log_lines: int = 3
    """Last lines of a crashed container's log that its event shows; 0: none."""
    hold_termination: int = 0
    """Longest time in seconds that a deleted pod's SIGTERM and preStop wait, within its grace, until the
    service rules of this node send it no new connections; 0: they do not wait."""
    declare_web_sockets: bool = True
    """Declare the node feature ExtendWebSocketsToKubelet, so that exec streams arrive as WebSockets."""


def build(document: dict[str, Any], *, where: str) -> NodeletConfiguration:
    """The configuration of a decoded document. Raises InputError naming the field."""
    try:
        config = msgspec.convert(document, NodeletConfiguration)
    except msgspec.ValidationError as exc:
        raise InputError(f"{where}: {str(exc).replace('$.', 'field ')}") from exc
    if config.api_version != API_VERSION or config.kind != KIND:
        raise InputError(f"{where}: expected apiVersion {API_VERSION}, kind {KIND}")
    if not 0 <= config.crash_log_lines <= 20:
        raise InputError(f"{where}: crashLogLines must be from 0 to 20, not {config.crash_log_lines}")
    if not 0 <= config.hold_termination <= 60:
        raise InputError(f"{where}: holdTermination must be from 0 to 60, not {config.hold_termination}")
    _one_of(where, "overlay.backend", config.overlay.backend, ("vxlan", "wireguard", "host-gw", "none"))
    _check_iface(where, config.overlay)
    _one_of(where, "proxy.mode", config.proxy.mode, ("iptables", "none"))
    _one_of(where, "networkPolicy", config.network_policy, ("auto", "on", "off"))
    outside = ",".join(config.overlay.non_masquerade_cidrs)
    for name, text in (
        ("clusterCIDR", config.cluster_cidr),
        ("podCIDR", config.pod_cidr),
        ("overlay.nonMasqueradeCIDRs", outside),
    ):
        for part in filter(None, text.split(",")):
            try:
                ipaddress.ip_network(part.strip())
            except ValueError as exc:
                raise InputError(f"{where}: {name}: {exc}") from exc
    return config


def _check_iface(where: str, overlay: OverlaySettings) -> None:
    given = [name for name in ("iface", "iface_regex", "iface_can_reach") if getattr(overlay, name)]
    if len(given) > 1:
        raise InputError(f"{where}: overlay: set one of iface, ifaceRegex and ifaceCanReach, not several")
    try:
        re.compile(overlay.iface_regex)
    except re.error as exc:
        raise InputError(f"{where}: overlay.ifaceRegex: {exc}") from exc
    try:
        ipaddress.ip_address(overlay.iface_can_reach or "::")
    except ValueError as exc:
        raise InputError(f"{where}: overlay.ifaceCanReach: {exc}") from exc


def _one_of(where: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{where}: {name} must be one of {', '.join(allowed)}, not {value!r}")
