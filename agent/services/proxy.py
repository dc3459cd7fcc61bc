"""The service proxy: keeps the node's rules equal to the cluster's Services.

    Service, EndpointSlice events → what changed → (first at once, then at most every 100 ms) → picture of
    those Services → back end → one transaction

Events only mark keys; the newest objects are read when it is time to sync, so a burst costs one sync and a
single change is live in tens of milliseconds. After a failure, and when somebody else changed our rules, the
next sync is a full one against the kernel.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from agent.server.exposition import Family
from agent.services import conntrack
from agent.services.health import Health, HealthPorts
from agent.services.iptables import Synced
from agent.services.metrics import ProxyMetrics
from agent.services.picture import SERVICE_NAME_LABEL, NodeFacts, VirtualPort, VirtualService, draw
from host.clocks import Clock, SystemClock
from host.errors import HostError

if TYPE_CHECKING:
    from agent.api.structs import EndpointSlice, Service

T_co = TypeVar("T_co", covariant=True)

_log = logging.getLogger(__name__)
_MAX_RETRY = 30.0


FlowCleaner = Callable[[list[VirtualPort]], Awaitable[object]]


class Watched(Protocol[T_co]):
    """What is needed of an `agent.api.watch.Informer`; its owner runs it."""

    synced: asyncio.Event

    def subscribe(self, on_change: Callable[[T_co | None, T_co | None], None]) -> None:
        """Call `on_change(old, new)` for everything known now and for each change."""


class BackEnd(Protocol):
    """What makes a picture real."""

    async def sync(self, services: Mapping[str, VirtualService], changed: Iterable[str]) -> Synced:
        """Apply; raises HostError, after which the next call is a full sync."""

    async def drifted(self) -> str:
        """Why the kernel no longer holds what was written; "" when it does."""

    def forget(self) -> None:
        """Make the next sync a full one."""


@dataclass(frozen=True)
class Pace:
    """When to sync, in seconds.

    Attributes:
        interval: at least this long from one sync's start to the next one's (the first is at once).
        check: how often to look whether somebody else changed our rules.
        retry: the first pause after a failure; doubles up to half a minute.
    """

    interval: float = 0.1
    check: float = 15.0
    retry: float = 1.0


class ServiceProxy:
    """The component.

    Args:
        services, slices: live collections of all Services and EndpointSlices.
        node: this node.
        back_end: makes the rules.
        health: answers on healthCheckNodePorts; None not to listen.
        clock: time.
        pace: when to sync.
        clean_flows: deletes UDP flows to endpoints that are gone; None not to.

    The constructor does nothing; `run()` works until it is cancelled and leaves the rules in place, so that a
    restart of the agent interrupts no connection.
    """

    def __init__(
        self,
        *,
        services: Watched[Service],
        slices: Watched[EndpointSlice],
        node: NodeFacts,
        back_end: BackEnd,
        health: HealthPorts | None = None,
        clock: Clock | None = None,
        pace: Pace | None = None,
        clean_flows: FlowCleaner | None = conntrack.reconcile,
    ) -> None:
        self._watched_services = services
        self._watched_slices = slices
        self._node = node
        self._back_end = back_end
        self._health = health
        self._clock = clock or SystemClock()
        self._pace = pace or Pace()
        self._clean_flows = clean_flows
        self._services: dict[str, Service] = {}
        self._slices: dict[str, dict[str, EndpointSlice]] = {}
        self._pictures: dict[str, VirtualService] = {}
        self._marked: set[str] = set()
        self._syncing: set[str] = set()
        self._wake = asyncio.Event()
        self._udp_changed = asyncio.Event()
        self._metrics = ProxyMetrics(since=self._clock.now())
        self.on_sync: Callable[[], None] = lambda: None
        """Called when the kernel has new rules."""
        self.synced = asyncio.Event()
        """Set while the kernel holds what was known at the last sync."""

    def routes_to(self, ips: Collection[str]) -> bool:
        """Whether this node's rules may send new connections to a pod at one of these addresses.

        One that is terminating gets them only where no other endpoint is left, which does not count.
        """
        for picture in self._pictures.values():
            for port in picture.ports:
                if any(one.ip in ips and not one.terminating for one in port.reachable):
                    return True
        for key in self._marked | self._syncing:  # the kernel has older rules than these
            for one in self._slices.get(key, {}).values():
                if any(ip in ips for found in one.endpoints or () for ip in found.addresses):
                    return True
        return False

    def families(self) -> Sequence[Family]:
        """For /metrics."""
        return self._metrics.families()

    async def run(self) -> None:
        """Sync whenever something changed, until cancelled."""
        await self._watched_services.synced.wait()
        await self._watched_slices.synced.wait()
        self._watched_services.subscribe(self._service_changed)
        self._watched_slices.subscribe(self._slice_changed)
        self._wake.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sync_forever())
                tasks.create_task(self._check_forever())
                if self._clean_flows is not None:
                    tasks.create_task(self._clean_flows_forever(self._clean_flows))
        finally:
            if self._health is not None:
                await self._health.close()

    def set_node(self, node: NodeFacts) -> None:
        """The node's facts changed (its zone label): draw everything again."""
        if node != self._node:
            self._node = node
            self._mark(*self._services)

    def resync(self) -> None:
        """Compare everything with the kernel at the next opportunity, which is now."""
        self._back_end.forget()
        self._wake.set()

    def _service_changed(self, old: Service | None, new: Service | None) -> None:
        for service in (old, new):
            if service is not None:
                key = f"{service.metadata.namespace}/{service.metadata.name}"
                if new is None:
                    self._services.pop(key, None)
                else:
                    self._services[key] = new
                self._mark(key)
        self._metrics.service_changed(self._clock.now())

    def _slice_changed(self, old: EndpointSlice | None, new: EndpointSlice | None) -> None:
        for one in (old, new):
            if one is None:
                continue
            service = one.metadata.labels.get(SERVICE_NAME_LABEL)
            if not service:
                continue
            key = f"{one.metadata.namespace}/{service}"
            slices = self._slices.setdefault(key, {})
            if one is new:
                slices[one.metadata.name] = one
            else:
                slices.pop(one.metadata.name, None)
            if not slices:
                del self._slices[key]
            self._mark(key)
        changed = new or old
        if changed is not None:
            self._metrics.endpoints_changed(changed, self._clock.now())

    def _mark(self, *keys: str) -> None:
        self._marked.update(keys)
        self.synced.clear()
        self._wake.set()

    async def _sync_forever(self) -> None:
        retry = self._pace.retry
        while True:
            await self._wake.wait()
            self._wake.clear()
            began = self._clock.monotonic()
            try:
                await self._sync()
                retry = self._pace.retry
            except HostError as exc:
                _log.error("sync of service rules failed, next try in %.0f s: %s", retry, exc)
                self._wake.set()
                await self._clock.sleep(retry)
                retry = min(retry * 2, _MAX_RETRY)
            await self._clock.sleep(began + self._pace.interval - self._clock.monotonic())

    async def _sync(self) -> None:
        """One sync of everything marked so far."""
        marked, self._marked = self._marked, set()
        self._syncing |= marked
        triggers = self._metrics.started()
        changed = []
        udp = False
        for key in marked:
            old = self._pictures.get(key, VirtualService(key))
            slices = self._slices.get(key, {}).values()
            new = draw(self._services.get(key), slices, key=key, node=self._node)
            if new == old:
                continue
            changed.append(key)
            udp = udp or any(port.protocol == "udp" for port in (*old.ports, *new.ports))
            if new.ports:
                self._pictures[key] = new
            else:
                self._pictures.pop(key, None)
        try:
            done = await self._back_end.sync(self._pictures, changed)
        except HostError:
            self._metrics.failed(triggers)
            raise
        self._metrics.synced(done, triggers, self._clock.now())
        self._syncing.clear()
        self.on_sync()
        if self._health is not None:
            await self._health.set(self._health_checks())
        if udp or done.full:
            self._udp_changed.set()
        if not self._marked:
            self.synced.set()
        level = logging.INFO if done.full else logging.DEBUG
        _log.log(
            level,
            "synced service rules full=%s services=%d changed=%d transactions=%d bytes=%d seconds=%.3f",
            done.full,
            len(self._pictures),
            len(changed),
            done.transactions,
            done.size,
            done.seconds,
        )

    def _health_checks(self) -> dict[int, Health]:
        return {
            picture.health_check_port: Health(picture.key, picture.local_ready)
            for picture in self._pictures.values()
            if picture.health_check_port
        }

    async def _check_forever(self) -> None:
        while True:
            await self._clock.sleep(self._pace.check)
            if not self.synced.is_set():
                continue
            try:
                reason = await self._back_end.drifted()
            except HostError as exc:
                reason = f"cannot read rules: {exc}"
            if reason:
                _log.warning("service rules drifted, writing them again: %s", reason)
                self.resync()

    async def _clean_flows_forever(self, clean_flows: FlowCleaner) -> None:
        """Beside the syncs, because listing a big conntrack table must not hold up rules."""
        while True:
            await self._udp_changed.wait()
            self._udp_changed.clear()
            ports = [port for picture in self._pictures.values() for port in picture.ports]
            try:
                await clean_flows(ports)
            except HostError as exc:
                _log.warning("cannot clean up UDP flows: %s", exc)
