"""Settings of the overlay, grouped; the defaults are flannel's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OverlaySettings:
    """How this node joins the pod network."""

    backend: Literal["vxlan", "wireguard", "host-gw", "none"] = "vxlan"
    """vxlan: tunnels. wireguard: encrypted ones. host-gw: plain routes, for nodes on one layer 2. none:
    somebody else does it."""
    vni: int = 1
    """VXLAN network identifier, the same on all nodes."""
    port: int = 8472
    """UDP port: Linux's and flannel's 8472, or IANA's 4789."""
    device: str = ""
    """Name of the tunnel device; empty for `flannel.<vni>`, or `flannel-wg`. With IPv6 there is a second one:
    `device_of`."""
    wireguard_port: int = 51820
    """UDP port of WireGuard in IPv4; in IPv6 it is the next one."""
    mtu: int = 0
    """Bytes, of the VXLAN device and of pods; 0 for the underlay's, less 50 with vxlan (70 over IPv6)."""
    direct_routing: bool = False
    """With vxlan: plain routes to peers that share a subnet with us, tunnels to the others."""
    masquerade: bool = True
    """Give pods the node's address towards everything but pods and nodes."""
    not_masqueraded: tuple[str, ...] = ()
    """Further ranges that see pod addresses."""
    masquerade_to_nodes: bool = False
    """Also towards other nodes, as flannel does: for networks that drop packets from pod addresses."""
    cluster_cidrs: tuple[str, ...] = ()
    """All pods of the cluster; reached without masquerading."""
    conf_dir: str = "/etc/cni/net.d"
    """Where the CNI configuration list is written; empty to write none."""
    bridge: str = "cbr0"
    """Bridge of the node's pods, named in the CNI configuration list."""
    state_dir: str = "/var/lib/cni/nodelet"
    """Keeps the VXLAN device's MAC over a restart; also the CNI plugin's state."""
    recheck_seconds: float = 5.0
    """How often the kernel is compared with what it should hold when no Node changes."""
    rules_recheck_seconds: float = 30.0
    """The same for packet filter rules."""

    mtu_probe_seconds: float = 600.0
    """How often packets of the full size are tried on the way to every peer; 0 for never."""

    def device_of(self, version: int) -> str:
        """Name of the tunnel device for pods of an IP version: 4, or 6 (flannel's `flannel-v6.<vni>`)."""
        if self.device:
            return self.device if version == 4 else f"{self.device}-v6"
        if self.backend == "wireguard":
            return "flannel-wg" if version == 4 else "flannel-wg-v6"
        return f"flannel.{self.vni}" if version == 4 else f"flannel-v6.{self.vni}"

    def wireguard_port_of(self, version: int) -> int:
        """UDP port of WireGuard for pods of an IP version."""
        return self.wireguard_port if version == 4 else self.wireguard_port + 1
