"""Nodes of a `lan.Lan` with an overlay each, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from lan import POD_NETWORKS, Lan, Machine

from agent.api.structs import Node, NodeSpec, NodeStatus, ObjectMeta
from agent.overlay.component import Overlay
from agent.overlay.kernel import NetlinkKernel
from agent.overlay.settings import OverlaySettings
from cni import vxlan
from host import rtnl
from host.netlink import Netlink


class Cluster:
    """Nodes with an overlay each; annotations go from one to all as through an API server."""

    def __init__(self, lan: Lan, directory: Path, **settings: object) -> None:
        self.lan, self.directory, self.settings = lan, directory, settings
        self.annotations: dict[str, dict[str, str]] = {}
        self.left: set[str] = set()
        self.foreign: dict[str, NodeStatus] = {}
        """Status of nodes that write no annotations: what others know of them is in it."""

    def nodes(self) -> dict[str, Node]:
        return {
            machine.name: Node(
                metadata=ObjectMeta(name=machine.name, annotations=self.annotations.get(machine.name, {})),
                spec=NodeSpec(pod_cidr=machine.pod_cidrs[0], pod_cidrs=machine.pod_cidrs),
                status=self.foreign.get(machine.name, NodeStatus()),
            )
            for machine in self.lan.nodes
            if machine.name not in self.left
        }

    def overlay(self, machine: Machine, kernel: NetlinkKernel) -> Overlay:
        async def annotate(values: Mapping[str, str]) -> None:
            self.annotations.setdefault(machine.name, {}).update(values)

        settings = OverlaySettings(
            cluster_cidrs=POD_NETWORKS,
            conf_dir=str(machine.state / "net.d"),
            state_dir=str(machine.state),
            rules_recheck_seconds=0,
            **self.settings,  # type: ignore[arg-type]
        )
        return Overlay(
            node_name=machine.name,
            node_ips=machine.ips,
            annotate=annotate,
            settings=settings,
            kernel=kernel,
        )

    def sync(self, rounds: int = 2) -> list[str]:
        """Let every node's overlay make rounds, as fresh processes would; what they complain about."""
        said = []
        for _ in range(rounds):
            said = [machine.run(lambda m=machine: asyncio.run(self._once(m))) for machine in self.lan.nodes]
        return [line for line in said if line]

    async def _once(self, machine: Machine) -> str:
        kernel = NetlinkKernel()
        overlay = self.overlay(machine, kernel)
        try:
            overlay._say(await overlay._round(self.nodes()))
        finally:
            kernel.close()
        return overlay.status


def routes() -> list[rtnl.Route]:
    """Our routes, where it is called."""
    with Netlink() as netlink:
        return netlink.routes(protocol=vxlan.ROUTE_PROTOCOL)
