"""Take away all that the overlay and the CNI plugin made on this node, and nothing else (`nodelet reset`).

Ours are: the VXLAN devices and the bridge by name and kind, host ends of pods by their alias, routes by their
protocol number, chains by name, the table of network policies, and two paths. What is gone already is
success; a second run finds nothing.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from agent.overlay.settings import OverlaySettings
from agent.policy.rules import TABLE
from cni import config as cni_config
from cni import firewall, hostports, vxlan
from host import rtnl
from host.errors import NotFound
from host.netlink import Netlink
from host.rules import nft


def reset(settings: OverlaySettings) -> list[str]:
    """Remove everything, in the network namespace of the calling thread; what was removed, for people.

    Blocks. Pods lose their network: call it when no pod is left.

    Raises:
        HostError: the kernel or iptables refused.
    """
    removed = []
    with Netlink() as netlink:
        for route in netlink.routes(protocol=vxlan.ROUTE_PROTOCOL):
            netlink.execute(rtnl.route(route, remove=True), ignore=(NotFound,))
            removed.append(f"route {route.destination}")
        tunnel = "wireguard" if settings.backend == "wireguard" else "vxlan"
        wanted = {settings.device_of(4): tunnel, settings.device_of(6): tunnel, settings.bridge: "bridge"}
        for link in netlink.links():
            ours = wanted.get(link.name) == link.kind or (
                link.kind == "veth" and link.alias.startswith("nodelet ")
            )
            if ours:
                netlink.execute(rtnl.delete_link(link.name), ignore=(NotFound,))
                removed.append(f"{link.kind} {link.name}")
    with suppress(NotFound):  # no nft here, so no table either
        if nft.read("inet", TABLE) is not None:
            nft.apply(nft.TableState("inet", TABLE).removal)
            removed.append(f"table inet {TABLE}")
    hostports.remove_all()
    firewall.remove()
    conflist = Path(settings.conf_dir or "/etc/cni/net.d") / cni_config.CONFLIST_NAME
    if conflist.exists():
        conflist.unlink()
        removed.append(str(conflist))
    if Path(settings.state_dir).is_dir():
        shutil.rmtree(settings.state_dir)
        removed.append(settings.state_dir)
    return removed
