"""The devices of this node: keeps up with every plugin, and gives each container its own.

Admission reserves devices in memory and on disk (`reserve`), so two pods never count on the same one. Plugins
are asked when a pod's first container starts (`prepare`): one that hangs or refuses holds up only pods that
asked for it, as a container that waits and says why. kubelet asks during admission and fails the pod.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from agent.api.structs import Container, Pod
from agent.devices import allocate, records
from agent.devices.allocate import Choice, Demand, pick, shortage
from agent.devices.grants import NOTHING, DeviceError, Grants, merged
from agent.devices.plugin import Plugin
from agent.devices.records import Grant, Held
from agent.devices.registration import obstacle, serving
from host.clocks import Clock
from host.errors import HostError
from proto.devices import plugin_pb2 as pb

log = logging.getLogger(__name__)
GRACE = 300.0
"""Seconds a resource keeps its capacity once its plugin has gone (kubelet's endpointStopGracePeriod)."""


@dataclass(eq=False)
class Pool:
    """The devices of one resource.

    Attributes:
        devices: by id, in the plugin's order: healthy or not.
        plugin: None while none is connected; nothing is healthy then.
        follower: what keeps up with that plugin.
        lost_at: since when, by the clock's `monotonic`; None: since before this agent.
    """

    devices: dict[str, bool] = field(default_factory=dict)
    plugin: Plugin | None = None
    follower: asyncio.Task[None] | None = None
    lost_at: float | None = None

    @property
    def healthy(self) -> list[str]:
        """Ids of devices that can be given."""
        return [name for name, good in self.devices.items() if good] if self.plugin is not None else []


class DeviceManager:
    """All device plugins of a node. `run()` until cancelled.

    Args:
        root: the agent's folder.
        over: whether a pod has ended or was refused, so that its devices are free.
        on_change: called when `resources` has changed.
    """

    def __init__(
        self,
        *,
        root: Path,
        clock: Clock,
        over: Callable[[str], bool],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._root = root
        self._folder = root / "device-plugins"
        self._clock = clock
        self._over = over
        self._on_change = on_change
        self._pools = {name: Pool() for name in records.kept_resources(self._folder)}
        self._held: dict[str, Held] = records.kept(root)
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- plugins ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take registrations and follow plugins. Raises InputError: another agent does."""
        if words := obstacle(self._folder):
            log.warning("no device plugins here: %s", words)
            await asyncio.Event().wait()
        try:
            async with serving(self._folder, self._register):
                await asyncio.Event().wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def resources(self) -> dict[str, tuple[int, int]]:
        """Capacity and allocatable of each resource that a plugin has ever announced here."""
        now = self._clock.monotonic()
        found = {}
        for name, pool in self._pools.items():
            gone = pool.plugin is None and (pool.lost_at is None or now - pool.lost_at > GRACE)
            found[name] = (0, 0) if gone else (len(pool.devices), len(pool.healthy))
        return found

    def _register(self, request: pb.RegisterRequest) -> None:
        name = request.resource_name
        if name not in self._pools:
            self._pools[name] = Pool()
            records.keep_resources(self._folder, self._pools)
        plugin = Plugin(
            self._folder / request.endpoint,
            resource=name,
            prefers=request.options.get_preferred_allocation_available,
            pre_start=request.options.pre_start_required,
        )
        log.info("device plugin registered resource=%s endpoint=%s", name, request.endpoint)
        task = asyncio.create_task(self._follow(self._pools[name], plugin), name=f"device plugin {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, pool: Pool, plugin: Plugin) -> None:
        """Keep a pool as its plugin tells. One that registers anew takes the place of the one before it."""
        try:
            async for devices in plugin.watch():
                if pool.plugin is not plugin and pool.follower is not None:
                    pool.follower.cancel()
                told = pool.plugin is plugin and devices == pool.devices
                pool.plugin, pool.devices, pool.lost_at = plugin, devices, None
                pool.follower = asyncio.current_task()
                if not told:
                    good = len(pool.healthy)
                    log.info("devices resource=%s healthy=%d of=%d", plugin.resource, good, len(devices))
                    self._on_change()
        except DeviceError as exc:
            log.warning("%s", exc)
        finally:
            if pool.plugin is plugin:
                pool.plugin, pool.follower, pool.lost_at = None, None, self._clock.monotonic()
                log.warning("device plugin gone resource=%s", plugin.resource)
                self._on_change()
            await plugin.close()

    # --- pods ---------------------------------------------------------------------------------------------

    def reserve(self, pod: Pod) -> str:
        """Set devices aside for a pod, unless it has them; why there are not enough, empty when there are."""
        demands = allocate.demands(pod, self._pools)
        if not demands:
            return ""
        before = self._held.get(pod.metadata.uid, {})
        choice, held = self._choice(pod.metadata.uid), _copy(before)
        for demand in demands:
            grant = before.get(demand.container, {}).get(demand.resource)
            if grant is None or len(grant.ids) != demand.count:
                offer = choice.offer(demand)
                if offer.missing:
                    return shortage(offer)
                grant = Grant(pick(offer))
            choice.take(demand, grant.ids)
            held.setdefault(demand.container, {})[demand.resource] = grant
        try:
            self._keep(pod.metadata.uid, held)
        except DeviceError as exc:
            return str(exc)
        return ""

    async def prepare(self, pod: Pod, container: Container) -> Grants:
        """What a container that is about to start gets with its devices.

        Raises:
            DeviceError: there are none for it, or the plugin did not give them.
        """
        mine = [d for d in allocate.demands(pod, self._pools) if d.container == container.name]
        if not mine:
            return NOTHING
        uid = pod.metadata.uid
        async with self._locks.setdefault(uid, asyncio.Lock()):
            words = self.reserve(pod)  # they may have been announced after the pod was admitted
            if words:
                raise DeviceError(words)
            if any(self._held[uid][d.container][d.resource].answer is None for d in mine):
                await self._allocate(pod)
        grants = [self._held[uid][d.container][d.resource] for d in mine]
        for demand, grant in zip(mine, grants, strict=True):
            plugin = self._pools[demand.resource].plugin
            if plugin is not None and plugin.pre_starts:
                await plugin.pre_start(grant.ids)
        return merged(pb.ContainerAllocateResponse.FromString(grant.answer or b"") for grant in grants)

    def release(self, uid: str) -> None:
        """A pod is gone, and its directory with it."""
        self._held.pop(uid, None)
        self._locks.pop(uid, None)

    def _choice(self, uid: str) -> Choice:
        """Nothing chosen yet, beside all other pods that have not ended."""
        taken: dict[str, set[str]] = {}
        for other, held in self._held.items():
            if other == uid or self._over(other):
                continue
            for grants in held.values():
                for name, grant in grants.items():
                    taken.setdefault(name, set()).update(grant.ids)
        return Choice(healthy={name: pool.healthy for name, pool in self._pools.items()}, taken=taken)

    async def _allocate(self, pod: Pod) -> None:
        """Ask plugins for everything of a pod that has not been given yet."""
        uid = pod.metadata.uid
        await self._improve(pod)
        for demand in allocate.demands(pod, self._pools):
            grant = self._held[uid][demand.container][demand.resource]
            if grant.answer is None:
                answer = await self._connected(demand).allocate(grant.ids)
                held = _copy(self._held[uid])
                held[demand.container][demand.resource] = msgspec.structs.replace(grant, answer=answer)
                self._keep(uid, held)

    async def _improve(self, pod: Pod) -> None:
        """Change reserved devices for those that plugins would rather give, where they have a preference."""
        uid = pod.metadata.uid
        choice, held = self._choice(uid), _copy(self._held[uid])
        for demand in allocate.demands(pod, self._pools):
            grant = held[demand.container][demand.resource]
            plugin = self._connected(demand) if grant.answer is None else None
            if plugin is not None and plugin.prefers:
                offer = choice.offer(demand)
                if not offer.missing:
                    grant = Grant(pick(offer, await plugin.prefer(offer)))
                    held[demand.container][demand.resource] = grant
            choice.take(demand, grant.ids)
        now = self._choice(uid).taken  # others may have reserved meanwhile
        clash = any(
            set(grant.ids).intersection(now.get(name, ()))
            for grants in held.values()
            for name, grant in grants.items()
        )
        if held != self._held[uid] and not clash:
            self._keep(uid, held)

    def _connected(self, demand: Demand) -> Plugin:
        plugin = self._pools[demand.resource].plugin
        if plugin is None:
            raise DeviceError(f"no device plugin is registered for {demand.resource}: waiting for it")
        return plugin

    def _keep(self, uid: str, held: Held) -> None:
        if held == self._held.get(uid):
            return
        try:
            records.keep(self._root, uid, held)
        except HostError as exc:
            raise DeviceError(f"the pod's devices cannot be recorded: {exc}") from exc
        self._held[uid] = held


def _copy(held: Held) -> dict[str, dict[str, Grant]]:
    return {container: dict(grants) for container, grants in held.items()}
