"""The entries of one IP version: what the Nodes ask for beside what the kernel holds.

In a large cluster a look at the kernel and at every Node costs far more than one changed peer does. So what a
Node has said is remembered as long as it is the same object, and what the kernel holds from one look to the
next; a change is then the difference of two pictures in memory. A look still finds all that others did.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from agent.api.structs import Node
from agent.overlay import peers
from agent.overlay.ground import Ground
from agent.overlay.kernel import Kernel
from agent.overlay.peers import Said
from agent.overlay.settings import OverlaySettings
from cni import vxlan
from cni.vxlan import Entries, Peer
from host.rtnl import IPNetwork

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reached:
    """What a comparison came to: the peers, entries changed, and a line for all that is wrong."""

    peers: list[Peer]
    changed: int
    problems: list[str]


class Table:
    """Belongs to one overlay and one IP version."""

    def __init__(self, own_name: str, settings: OverlaySettings) -> None:
        self._own_name = own_name
        self._settings = settings
        self._place: Ground | None = None
        self._said: dict[str, Said] = {}
        self._asked: tuple[list[Peer], tuple[IPNetwork, ...]] | None = None
        self._wanted: tuple[Entries, list[str]] = Entries(), []
        self._held: Entries | None = None

    def reach(
        self,
        kernel: Kernel,
        nodes: Mapping[str, Node],
        place: Ground,
        own: tuple[IPNetwork, ...],
        *,
        look: bool,
    ) -> Reached:
        """Make the kernel's entries those that the Nodes ask for.

        Args:
            kernel: where they are.
            nodes: all Nodes by name.
            place: where this node stands; in another place everything is looked at anew.
            own: its pod ranges.
            look: whether the kernel is asked what it holds, or what is known of it is enough.

        Raises:
            HostError: the kernel did not say.
        """
        if place != self._place:
            self._place, self._said, self._asked, self._held = place, {}, None, None
        found, problems = peers.parse_peers(
            nodes, own_name=self._own_name, own=place.address, settings=self._settings, said=self._said
        )
        if (found, own) != self._asked:
            self._asked = found, own
            self._wanted = vxlan.desired(
                found,
                device=place.device,
                underlay=place.underlay.index,
                own=own,
                port=self._settings.wireguard_port_of(place.address.version),
            )
        wanted, conflicts = self._wanted
        held, self._held = self._held, None
        if look or held is None:
            held = kernel.entries(place.device, place.address.version)
        ops = vxlan.plan(wanted, held)
        failures = kernel.apply(ops, device=place.device)
        if not failures:
            self._held = wanted
        changed = len(ops) - len(failures)
        if ops:
            log.info("overlay: %d of %d entries changed", changed, len(ops))
        return Reached(found, changed, problems + conflicts + failures)

    def withdraw(self, kernel: Kernel, version: int) -> None:
        """Take our routes away: the pod network is another's. Raises HostError."""
        self._place = None
        kernel.apply(vxlan.plan(Entries(), kernel.entries(0, version)), device=0)
