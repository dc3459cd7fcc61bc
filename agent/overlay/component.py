"""The overlay component: Nodes in; kernel entries, our own Node's annotations and the CNI configuration out.

Level-triggered: an event only wakes the loop, which compares everything that is wanted with everything that
the kernel lists, at the start too and every few seconds; between two such looks, with what it listed. So a
device that somebody deleted is back with the same MAC at the next look, and a change missed is a change made
later, never one lost.

    Nodes ──> parse_peers ──> vxlan.desired ─┐
                                             ├─> vxlan.plan ──> Kernel.apply    a Table for each IP version
    kernel ──────────────> Kernel.entries ───┘

Kernel state stays when the loop ends: pods keep talking while the agent restarts.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from agent.api.structs import Node
from agent.overlay import ground, offload, peers, sysctl, yielding
from agent.overlay.ground import Ground
from agent.overlay.kernel import Kernel, NetlinkKernel
from agent.overlay.metrics import OverlayMetrics
from agent.overlay.mtu import SMALL, IcmpEcho, find_narrow
from agent.overlay.offload import tunnels
from agent.overlay.settings import OverlaySettings
from agent.overlay.table import Table
from agent.server.exposition import Family
from cni import config as cni_config
from cni import firewall, hostports
from cni.vxlan import Peer
from host import ethtool, files
from host.clocks import Clock, SystemClock, sleep_unless
from host.errors import HostError, InputError, NotFound
from host.rtnl import IPAddress, IPNetwork

log = logging.getLogger(__name__)
T = TypeVar("T")

_IDLE_SHARE = 50  # rechecks of a large cluster are spaced so that they take at most a 50th of the time

_LASTING = (
    30.0  # seconds after which a problem is for a person to see; peers that join have some for a moment
)

Annotate = Callable[[Mapping[str, str]], Awaitable[None]]
"""Writes annotations to our own Node; may raise what the API client raises, and is asked again later."""

Report = Callable[[str, str], None]
"""Takes (reason, message), for instance an EventRecorder bound to our own Node."""


class Overlay:
    """Keeps this node's half of the pod network equal to the Node list.

    Args:
        node_name: of this node.
        node_ips: its addresses in the underlay, as text: one of each IP version that its pods have.
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
        node_ips: Sequence[str],
        annotate: Annotate,
        settings: OverlaySettings | None = None,
        clock: Clock | None = None,
        kernel: Kernel | None = None,
        annotate_failures: tuple[type[Exception], ...] = (OSError,),
        report: Report | None = None,
    ) -> None:
        self._name = node_name
        own = [ipaddress.ip_address(text) for text in node_ips]
        self._own: dict[int, IPAddress] = {
            ip.version: ip for ip in reversed(own)
        }  # the first of each version
        self._annotate = annotate
        self._settings = settings or OverlaySettings()
        self._clock = clock or SystemClock()
        self._kernel = kernel
        self._failures: tuple[type[Exception], ...] = (*annotate_failures, HostError, InputError)
        self._nodes: Mapping[str, Node] | None = None
        self._wake = asyncio.Event()
        self._status, self._blocked = "waiting for the list of nodes", ""
        self._since: dict[str, float] = {}  # when each problem of now began
        self._told: set[str] = set()
        self._rules_checked = self._looked = float("-inf")
        self._report = report
        self._underlay_mtu = 0
        self._hosts: dict[str, IPAddress] = {}
        self._tunnels: list[IPAddress] = []
        self._ranges: tuple[IPNetwork, ...] = ()
        self._peers_known = asyncio.Event()
        self._nodes_changed, self._repairing = True, False
        self._other = ""
        self._metrics = OverlayMetrics()
        self._tables = {version: Table(node_name, self._settings) for version in (4, 6)}

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

    @property
    def blocked(self) -> str:
        """Why no pod of this node can have a network, because of what its Node says; '' for anything else."""
        return self._blocked

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
                    await self._mend_checksums(report, echo)
            except HostError as exc:
                log.info("overlay: paths to peers are not checked: %s", exc)
                return
            for name in narrow.keys() - known:
                log.warning("overlay: %s", narrow[name])
                report("PathMTUTooSmall", narrow[name])
            known = set(narrow)
            await self._clock.sleep(self._settings.mtu_probe_seconds)

    async def _mend_checksums(self, report: Report, echo: IcmpEcho) -> None:
        """Look whether the tunnel device's offload does what it says. Raises HostError."""
        name = self._settings.device_of(4)
        if not self._tunnels or not await asyncio.to_thread(ethtool.transmit_checksums, name):
            return
        if await offload.mend(
            self._tunnels,
            echo=lambda host: echo(host, SMALL),
            datagram=offload.datagram,
            offload=lambda on: ethtool.set_transmit_checksums(name, on),
        ):
            text = f"checksums of {name} arrived wrong at peers: its tx-checksum offload is off now"
            log.warning("overlay: %s", text)
            report("ChecksumOffloadBroken", text)

    async def _wait(self, seconds: float) -> None:
        """Until an update wakes us or so much time has passed."""
        await sleep_unless(self._clock, self._wake, seconds)
        self._wake.clear()

    def _say(self, problems: list[str]) -> None:
        status = "; ".join(problems)
        if status != self._status:
            log.warning("overlay: %s", status) if status else log.info("overlay: all peers are in place")
        self._status = status
        now = self._clock.monotonic()
        self._since = {text: self._since.get(text, now) for text in problems}
        self._told &= self._since.keys()
        for text, since in self._since.items():
            if self._report is not None and now - since >= _LASTING and text not in self._told:
                self._told.add(text)
                self._report("PodNetworkIncomplete", text)

    async def _round(self, nodes: Mapping[str, Node]) -> list[str]:
        """One comparison with the kernel, and what kept it from being complete."""
        self._repairing, self._nodes_changed = not self._nodes_changed, False
        if await self._yields():
            return []
        node = nodes.get(self._name)
        try:
            ranges = peers.pod_ranges(node) if node else ()
        except InputError as exc:
            self._blocked = str(exc)
            return [self._blocked]
        if node is None or not ranges:
            self._blocked = cni_config.NO_POD_CIDR
            return [self._blocked]
        self._ranges, self._blocked = ranges, ""
        try:
            now = self._clock.monotonic()
            due = now - self._rules_checked >= self._settings.rules_recheck_seconds
            look = self._repairing or now - self._looked >= self._settings.recheck_seconds
            grounds, problems = await _finish_on_thread(
                lambda: self._reconcile(nodes, ranges, check_rules=due, look=look)
            )
            if look:
                self._looked = now
            if not grounds:
                self._blocked = "" if self._own.keys() & {net.version for net in ranges} else problems[0]
                return problems
            if due:
                self._rules_checked = self._clock.monotonic()
            self._underlay_mtu = grounds[0].underlay.mtu
            if self._hosts:
                self._peers_known.set()
            wanted = peers.own_annotations(
                self._settings, [(ground.address.ip, ground.mac, ground.key) for ground in grounds]
            )
            if any(node.metadata.annotations.get(key) != value for key, value in wanted.items()):
                await self._annotate(wanted)
        except self._failures as exc:
            return [str(exc)]
        return problems

    async def _yields(self) -> bool:
        """Whether another CNI has this node's network. What would misguide its packets goes then.

        Those are our routes and rules. The device stays: flannel has one of that name, and it is idle.
        """
        folder = self._settings.conf_dir
        other = await asyncio.to_thread(yielding.preferred, Path(folder)) if folder else ""
        if other == self._other:
            return bool(other)
        self._other = other
        log.warning("overlay: %s", f"{other} is preferred to ours: stepping back" if other else "ours again")
        if other:
            await _finish_on_thread(self._step_back)
        return bool(other)

    def _step_back(self) -> None:
        if self._kernel is None:
            self._kernel = NetlinkKernel()
        for version in (4, 6):
            self._tables[version].withdraw(self._kernel, version)
        self._kernel.remove_rules()
        self._rules_checked, self._blocked, self._hosts = float("-inf"), "", {}
        self._metrics.peers = 0

    def _reconcile(
        self, nodes: Mapping[str, Node], ranges: tuple[IPNetwork, ...], *, check_rules: bool, look: bool
    ) -> tuple[list[Ground], list[str]]:
        """The blocking half of a round, on a thread: where we stand in each IP version, and what is wrong.

        `look`: see Table.reach.
        """
        if self._kernel is None:
            self._kernel = NetlinkKernel()
        grounds, found, problems = [], [], []
        for version in (4, 6):
            own = tuple(net for net in ranges if net.version == version)
            if not own:
                ground.clear(self._kernel, self._settings, version)
                continue
            try:
                place = ground.prepare(
                    self._kernel, self._settings, hosts=self._own, own=own[0], node=nodes.get(self._name)
                )
            except (HostError, InputError) as exc:  # the other version goes on
                problems.append(str(exc))
                continue
            reached = self._tables[version].reach(self._kernel, nodes, place, own, look=look)
            self._metrics.changed(reached.changed, repair=self._repairing)
            grounds.append(place)
            found += reached.peers
            problems += reached.problems
        if not grounds:
            return [], problems
        mtu = min(place.mtu for place in grounds)
        gateways = [cni_config.gateway(net) for net in ranges]
        lost = self._kernel.keep_bridge(self._settings.bridge, gateways, mtu=mtu)
        if lost:
            log.warning("overlay: %s had lost %s", self._settings.bridge, ", ".join(lost))
        self._write_conflist(ranges, mtu)
        if check_rules:
            self._ensure_rules(ranges, found)
            if grounds[0].device and grounds[0].address.version == 4:
                self._allow_two_ways(grounds[0].underlay.name)
        self._hosts = {peer.name: peer.host for peer in reversed(found)}
        self._tunnels = tunnels(found)
        self._metrics.peers = len(self._hosts)
        return grounds, problems

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
        nodes = set(self._own.values())
        if not self._settings.masquerade_to_nodes:
            nodes |= {peer.host for peer in found}
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
        changed = sysctl.loosen_reverse_path([underlay, self._settings.device_of(4)])
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
