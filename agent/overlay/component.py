"""The overlay component: Nodes in, kernel state and our own node's annotations out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from agent.api.structs import Node
from host.clocks import Clock, SystemClock


@dataclass(frozen=True)
class OverlaySettings:
    """Settings of the overlay, all with flannel's defaults."""

    backend: Literal["vxlan", "host-gw", "none"] = "vxlan"
    vni: int = 1
    port: int = 8472
    device: str = "flannel.1"
    mtu: int = 0  # bytes on the VXLAN device; 0: the underlay's minus 50
    direct_routing: bool = False  # plain routes to peers on our own subnet, VXLAN to the rest
    recheck_seconds: float = 5.0  # compare with the kernel this often even if no Node changed
    state_dir: str = "/var/lib/cni/nodelet"  # keeps the VTEP's MAC over a restart


class Overlay:
    """Keeps this node's half of the pod network equal to the Node list.

    `update` only stores the latest Nodes and wakes the loop; the loop compares all that is wanted with all
    that the kernel lists. `annotate` patches the given annotations onto our own Node (idempotent; may raise,
    is retried at the next recheck).
    """

    def __init__(
        self,
        *,
        node_name: str,
        node_ip: str,
        annotate: Callable[[Mapping[str, str]], Awaitable[None]],
        settings: OverlaySettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.node_name = node_name
        self.node_ip = node_ip
        self.annotate = annotate
        self.settings = settings or OverlaySettings()
        self.clock = clock or SystemClock()

    def update(self, nodes: Mapping[str, Node]) -> None:
        """Takes the full set of Nodes by name (from the informer's store) and wakes the loop. Cheap."""
        raise NotImplementedError

    @property
    def pod_mtu(self) -> int:
        """MTU in bytes for pod interfaces (for cni.config.render_conflist); raises HostError before it is known."""
        raise NotImplementedError

    @property
    def status(self) -> str:
        """'' when all peers are in place, else one line that says what is wrong and what to do."""
        raise NotImplementedError

    async def run(self) -> None:
        """Runs until cancelled. Leaves kernel state in place on cancellation (pods keep talking)."""
        raise NotImplementedError
