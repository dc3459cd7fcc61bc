"""The overlay component: Nodes in; kernel entries, our own Node's annotations and the CNI configuration out.

Level-triggered: an event only wakes the loop, which compares everything that is wanted with everything that
the kernel lists, at the start too and every few seconds. So a device that somebody deleted is back with the
same MAC at the next look, and a change missed is a change made later, never one lost.

    Nodes ──> parse_peers ──> vxlan.desired ─┐
                                             ├─> vxlan.plan ──> Kernel.apply
    kernel ──────────────> Kernel.entries ───┘

Kernel state stays when the loop ends: pods keep talking while the agent restarts.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from agent.api.structs import Node
from agent.overlay import mac, peers, sysctl
from agent.overlay.kernel import Kernel, NetlinkKernel
from agent.overlay.metrics import OverlayMetrics
from agent.overlay.mtu import IcmpEcho, find_narrow
from agent.overlay.settings import OverlaySettings
from agent.server.exposition import Family
from cni import config as cni_config
from cni import firewall, hostports, vxlan
from cni.vxlan import Device, Peer
from host import files
from host.clocks import Clock, SystemClock, sleep_unless
from host.errors import HostError, InputError, NotFound
from host.rtnl import IPAddress, IPInterface, IPNetwork, Link

log = logging.getLogger(__name__)
T = TypeVar("T")

_IDLE_SHARE = 50  # rechecks of a large cluster are spaced so that they take at most a 50th of the time

Annotate = Callable[[Mapping[str, str]], Awaitable[None]]
"""Writes annotations to our own Node; may raise what the API client raises, and is asked again later."""

Report = Callable[[str, str], None]
"""Takes (reason, message), for instance an EventRecorder bound to our own Node."""


@dataclass(frozen=True)
class _Ground:
    """What one round stands on: this node's place in the underlay, and its tunnel device (index 0: none)."""

    underlay: Link
    address: IPInterface
    device: int
    mac: str
    mtu: int


class Overlay:
    """Keeps this node's half of the pod network equal to the Node list.

    Args:
        node_name: of this node.
        node_ip: its address in the underlay, as text.
        annotate: writes our annotations.
        settings: see OverlaySettings.
        clock: for the pauses between rechecks.
        kernel: where entries go; made by `run` from its thread's network namespace when None.
        annotate_failures: exception types of `annotate` that are worth a later try.
        report: told (reason, message) of what a person should know, for an Event of the Node.
    """

    def __init__(
        self,
        *,
        node_name: str,
        node_ip: str,
        annotate: Annotate,
        settings: OverlaySettings | None = None,
        clock: Clock | None = None,
        kernel: Kernel | None = None,
        annotate_failures: tuple[type[Exception], ...] = (OSError,),
        report: Report | None = None,
    ) -> None:
        self._name = node_name
        self._host: IPAddress = ipaddress.ip_address(node_ip)
        self._annotate = annotate
        self._settings = settings or OverlaySettings()
        self._clock = clock or SystemClock()
        self._kernel = kernel
        self._failures: tuple[type[Exception], ...] = (*annotate_failures, HostError, InputError)
        self._nodes: Mapping[str, Node] | None = None
        self._wake = asyncio.Event()
        self._status = "waiting for the list of nodes"
        self._rules_checked = float("-inf")
        self._report = report
        self._underlay_mtu = 0
        self._hosts: dict[str, IPAddress] = {}
        self._ranges: tuple[IPNetwork, ...] = ()
        self._peers_known = asyncio.Event()
        self._nodes_changed, self._repairing = True, False
        self._metrics = OverlayMetrics()

    def update(self, nodes: Mapping[str, Node]) -> None:
        """Take the full set of Nodes by name (the informer's store); wakes the loop if it matters to it.

        Cheap: Nodes change with every heartbeat, and mostly in nothing that concerns the overlay.
        """
        before, self._nodes = self._nodes, dict(nodes)
        if (
            before is None
            or before.keys() != nodes.keys()
            or any(
                before[name] is not node and peers.relevant(before[name]) != peers.relevant(node)
                for name, node in nodes.items()
            )
        ):
            self._nodes_changed = True
            self._wake.set()

    @property
    def status(self) -> str:
        """'' when all is in place, else one line that says what is wrong and what to do."""
        return self._status

    def families(self) -> Sequence[Family]:
        """For /metrics; nothing where the pod network is somebody else's."""
        if self._settings.backend == "none":
            return ()
        state = Path(self._settings.state_dir) / cni_config.NETWORK
        return self._metrics.families(state, self._ranges)

    async def run(self) -> None:
        """Work until cancelled."""
        if self._settings.backend == "none":
            self._status = ""
            await asyncio.Event().wait()
        made_here = self._kernel is None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep(), name="overlay")
                if self._settings.mtu_probe_seconds and self._report is not None:
                    tasks.create_task(self._probe(self._report), name="overlay-mtu")
        finally:
            if made_here and isinstance(self._kernel, NetlinkKernel):
                self._kernel.close()

    async def _keep(self) -> None:
        spent = 0.0
        while True:
            if self._nodes is not None:
                started = self._clock.monotonic()
                problems = await self._round(self._nodes)
                self._say(problems)
                spent = self._clock.monotonic() - started
                self._metrics.problems = len(problems)
                self._metrics.round_took(spent)
            await self._wait(max(self._settings.recheck_seconds, _IDLE_SHARE * spent))

    async def _probe(self, report: Report) -> None:
        """Tell of peers that large packets do not reach, once for each time it starts."""
        known: set[str] = set()
        while True:
            await self._peers_known.wait()
            try:
                with IcmpEcho() as echo:
                    narrow = await find_narrow(dict(self._hosts), self._underlay_mtu, echo)
            except HostError as exc:
                log.info("overlay: path MTU is not checked: %s", exc)
                return
            for name in narrow.keys() - known:
                log.warning("overlay: %s", narrow[name])
                report("PathMTUTooSmall", narrow[name])
            known = set(narrow)
            await self._clock.sleep(self._settings.mtu_probe_seconds)

    async def _wait(self, seconds: float) -> None:
        """Until an update wakes us or so much time has passed."""
        await sleep_unless(self._clock, self._wake, seconds)
        self._wake.clear()

    def _say(self, problems: list[str]) -> None:
        status = "; ".join(problems)
        if status != self._status:
            log.warning("overlay: %s", status) if status else log.info("overlay: all peers are in place")
        self._status = status

    async def _round(self, nodes: Mapping[str, Node]) -> list[str]:
        """One comparison with the kernel, and what kept it from being complete."""
        self._repairing, self._nodes_changed = not self._nodes_changed, False
        node = nodes.get(self._name)
        try:
            ranges = peers.pod_ranges(node) if node else ()
            if node is None or not ranges:
                return [cni_config.NO_POD_CIDR]
            self._ranges = ranges
            due = self._clock.monotonic() - self._rules_checked >= self._settings.rules_recheck_seconds
            ground, problems = await _finish_on_thread(lambda: self._reconcile(nodes, ranges, due))
            if due:
                self._rules_checked = self._clock.monotonic()
            self._underlay_mtu = ground.underlay.mtu
            if self._hosts:
                self._peers_known.set()
            wanted = peers.own_annotations(self._settings, host=self._host, mac=ground.mac)
            if any(node.metadata.annotations.get(key) != value for key, value in wanted.items()):
                await self._annotate(wanted)
        except self._failures as exc:
            return [str(exc)]
        return problems

    def _reconcile(
        self, nodes: Mapping[str, Node], ranges: tuple[IPNetwork, ...], check_rules: bool
    ) -> tuple[_Ground, list[str]]:
        """The blocking half of a round, on a thread."""
        if self._kernel is None:
            self._kernel = NetlinkKernel()
        kernel = self._kernel
        ground = self._prepare(kernel, nodes, ranges)
        found, problems = peers.parse_peers(
            nodes, own_name=self._name, own=ground.address, settings=self._settings
        )
        wanted, conflicts = vxlan.desired(
            found, device=ground.device, underlay=ground.underlay.index, own=ranges
        )
        ops = vxlan.plan(wanted, kernel.entries(ground.device))
        failures = kernel.apply(ops, device=ground.device)
        if ops:
            log.info("overlay: %d of %d entries changed", len(ops) - len(failures), len(ops))
            self._metrics.changed(len(ops) - len(failures), repair=self._repairing)
        self._write_conflist(ranges, ground.mtu)
        if check_rules:
            self._ensure_rules(ranges, found)
            if ground.device:
                self._allow_two_ways(ground.underlay.name)
        self._hosts = {peer.name: peer.host for peer in found}
        self._metrics.peers = len(found)
        return ground, problems + conflicts + failures

    def _prepare(self, kernel: Kernel, nodes: Mapping[str, Node], ranges: tuple[IPNetwork, ...]) -> _Ground:
        """The tunnel device as it shall be (or gone, without tunnels)."""
        settings = self._settings
        underlay, address = kernel.underlay(self._host)
        if settings.backend == "host-gw":
            kernel.delete_device(settings.device_name)
            return _Ground(underlay, address, 0, "", settings.mtu or underlay.mtu)
        ipv4 = [net for net in ranges if net.version == 4]
        if not ipv4:
            raise InputError("spec.podCIDRs: the vxlan overlay needs an IPv4 range")
        there = kernel.find_link(settings.device_name)
        own_mac = mac.keep(
            Path(settings.state_dir) / f"{settings.device_name}.mac",
            device=there.mac if there and there.kind == "vxlan" else "",
            node=nodes.get(self._name),
        )
        wanted = Device(
            name=settings.device_name,
            vni=settings.vni,
            port=settings.port,
            underlay=underlay.index,
            local=self._host,
            mac=own_mac,
            mtu=settings.mtu or underlay.mtu - vxlan.OVERHEAD,
            address=ipaddress.ip_interface(ipv4[0].network_address),
        )
        link, reason = kernel.ensure_device(wanted)
        if reason:
            log.warning("overlay: replaced %s: %s", wanted.name, reason)
        return _Ground(underlay, address, link.index, own_mac, wanted.mtu)

    def _write_conflist(self, ranges: tuple[IPNetwork, ...], mtu: int) -> None:
        """The CNI configuration list, written only when it changes: runtimes watch its folder."""
        settings = self._settings
        if not settings.conf_dir:
            return
        content = cni_config.render_conflist(
            [str(net) for net in ranges],
            cluster_cidrs=settings.cluster_cidrs,
            mtu=mtu,
            bridge=settings.bridge,
            state_dir=settings.state_dir,
            masquerade=settings.masquerade,
            not_masqueraded=settings.not_masqueraded,
        )
        target = Path(settings.conf_dir) / cni_config.CONFLIST_NAME
        with suppress(FileNotFoundError):
            if target.read_bytes() == content:
                return
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        files.write_atomic(target, content, mode=0o644)

    def _ensure_rules(self, ranges: tuple[IPNetwork, ...], found: list[Peer]) -> None:
        plugin = {
            "name": cni_config.NETWORK,
            "subnets": [str(net) for net in ranges],
            "clusterCIDRs": list(self._settings.cluster_cidrs),
            "ipMasq": self._settings.masquerade,
            "nonMasqueradeCIDRs": list(self._settings.not_masqueraded),
        }
        network = replace(cni_config.parse_config(plugin), state_dir=Path(self._settings.state_dir))
        missing = firewall.write_switches(network)
        if missing:
            log.warning("overlay: this kernel has no %s (modprobe br_netfilter)", ", ".join(missing))
        nodes = {self._host} if self._settings.masquerade_to_nodes else {self._host, *(p.host for p in found)}
        reached = [f"{host}/{host.max_prefixlen}" for host in nodes]
        if not self._settings.cluster_cidrs:
            reached += {str(net) for peer in found for net in peer.subnets}
        with suppress(NotFound):  # no iptables here: the plugin's ADD says so
            changed = firewall.ensure_rules(network, reached)
            changed = hostports.assert_rules(network.state_dir / network.name) or changed
            if changed:
                log.info("overlay: packet filter rules written")
                self._metrics.rules_written()

    def _allow_two_ways(self, underlay: str) -> None:
        """A pod reaches another node by the underlay, and the answer comes through the tunnel."""
        changed = sysctl.loosen_reverse_path([underlay, self._settings.device_name])
        if changed:
            log.info("overlay: rp_filter set to 2 (loose) on %s, was 1 (strict)", ", ".join(changed))


async def _finish_on_thread(work: Callable[[], T]) -> T:
    """Run `work` on a thread; a cancelled caller waits for its end, so that nothing is left half-done."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise
