"""Keeps our Node object registered and true.

Registration: create, or adopt what is there. Then a status computed every ten seconds and at every wake-up,
posted when it says something new and every five minutes. The heartbeat is `lease`'s. Facts come from `facts`
and from the runtime; what to write is decided in `status` and `conditions`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from agent.api import errors
from agent.api.client import ApiClient, PatchKind
from agent.api.events import EventRecorder, node_reference
from agent.api.meta import JSON
from agent.api.resources import NODES
from agent.api.structs import ContainerImage, Node, NodeAddress, NodeStatus
from agent.api.times import format_time
from agent.api.watch import backoff
from agent.node import conditions, facts, status
from agent.node.conditions import RuntimeState
from agent.node.facts import Machine
from agent.node.lease import LeaseKeeper
from agent.node.status import NodePlan
from host.clocks import Clock, sleep_unless

log = logging.getLogger(__name__)
UNREADY_PAUSE = 1.0
"""Seconds between two looks while the node is not ready: what it waits for may come at any moment."""

RUNTIME_GRACE = 30.0
"""Seconds the runtime may be away before the node says so (kubelet's maxWaitForContainerRuntime)."""


class RuntimeProbe(Protocol):
    """What the node asks the container runtime."""

    async def state(self) -> RuntimeState:
        """Readiness, version and handlers; never raises, `error` says why there is no answer."""

    async def images(self) -> Sequence[ContainerImage]:
        """The images on the node; empty when the runtime does not answer."""


class NodeManager:
    """Owner of the Node object. `run()` until cancelled.

    Args:
        client: None in standalone mode: facts are kept up to date, nothing is posted.
        problems: further reasons not to be Ready, asked each time ("node has no podCIDR: …").
        pressures: pressure conditions that are True, with their messages, asked each time.
        devices: capacity and allocatable of each resource of a device plugin, asked each time.
        machine: what the machine is; read when it is not given.
        addresses: `status.addresses`, asked each time, so that a changed address is noticed.
    """

    def __init__(
        self,
        client: ApiClient | None,
        *,
        plan: NodePlan,
        root: Path,
        runtime: RuntimeProbe,
        addresses: Callable[[], Sequence[NodeAddress]],
        events: EventRecorder,
        clock: Clock,
        problems: Callable[[], Sequence[str]] = tuple,
        pressures: Callable[[], Mapping[str, str]] = dict,
        devices: Callable[[], Mapping[str, tuple[int, int]]] = dict,
        machine: Machine | None = None,
        update_every: float = 10.0,
        report_every: float = 300.0,
        lease_seconds: int = 40,
    ) -> None:
        self.plan = plan
        self.machine = machine or facts.read_machine()
        self.registered = asyncio.Event()
        self.node: Node | None = None
        self.status = NodeStatus()
        self.ready = False
        self._client = client
        self._root = root
        self._runtime = runtime
        self._addresses = addresses
        self._events = events
        self._clock = clock
        self._problems = problems
        self._pressures = pressures
        self._devices = devices
        self._update_every = update_every
        self._report_every = report_every
        self._wake = asyncio.Event()
        self._posted: tuple[object, ...] | None = None
        self._posted_at = 0.0
        self._said = ""
        self._images: Sequence[ContainerImage] = ()
        self._runtime_state = RuntimeState(error="not asked yet")
        self._runtime_seen = clock.monotonic()
        self._lease = (
            LeaseKeeper(client, node_name=plan.name, duration=lease_seconds, clock=clock) if client else None
        )

    def wake(self) -> None:
        """Compute the status now instead of at the next turn."""
        self._wake.set()

    async def run(self) -> None:
        """Register, then keep status and lease, until cancelled."""
        await self._compute()
        if self._client is None:
            await self._follow()
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._register_and_follow(), name="node-status")
            if self._lease is not None:
                tasks.create_task(self._beat(self._lease), name="node-lease")

    async def _beat(self, lease: LeaseKeeper) -> None:
        await self.registered.wait()
        if self.node is not None:
            lease.own(self.node)
        await lease.run()

    async def _register_and_follow(self) -> None:
        attempt = 0
        while not self.registered.is_set():
            try:
                await self._register()
                self.registered.set()
            except errors.ApiError as exc:
                level = errors.log_level(exc)
                log.log(level, "node not registered node=%s error=%s", self.plan.name, exc)
                await self._clock.sleep(backoff(attempt))
                attempt += 1
        self._say("Normal", "Starting", "Starting kubelet.")
        await self._follow()

    async def _register(self) -> None:
        """Create the Node, or adopt the existing one."""
        client = self._client
        if client is None:
            return
        if not self.plan.register:
            self.node = await client.get(NODES, self.plan.name)
            return
        now = format_time(self._clock.now())
        stamped = msgspec.structs.replace(
            self.status, conditions=conditions.stamp(self.status.conditions, (), now=now)
        )
        try:
            self.node = await client.create(NODES, status.new_node(self.plan, self.machine, stamped))
            log.info("node registered node=%s uid=%s", self.plan.name, self.node.metadata.uid)
            return
        except errors.AlreadyExists:
            node = await client.get(NODES, self.plan.name)
        patch = status.adoption(node, self.plan, self.machine)
        if patch is not None:
            node = await client.patch(NODES, self.plan.name, patch, kind=PatchKind.STRATEGIC)
        self.node = node
        log.info("node adopted node=%s uid=%s", self.plan.name, node.metadata.uid)

    async def _follow(self) -> None:
        """Compute and post, until cancelled."""
        failures = 0
        while True:
            await self._compute()
            pause = self._update_every if self.ready else min(self._update_every, UNREADY_PAUSE)
            if self._client is not None:
                try:
                    await self._post()
                    failures = 0
                except errors.NotFound:
                    log.warning("node object was deleted, registering again node=%s", self.plan.name)
                    self._posted = None
                    await self._register_again()
                except errors.ApiError as exc:
                    level = errors.log_level(exc)
                    log.log(level, "node status not posted node=%s error=%s", self.plan.name, exc)
                    pause = min(pause, backoff(failures))
                    failures += 1
            await self._pause(pause)

    async def _register_again(self) -> None:
        try:
            await self._register()
        except errors.ApiError as exc:
            log.warning("node not registered node=%s error=%s", self.plan.name, exc)

    async def _pause(self, seconds: float) -> None:
        """Wait that long, or until woken; a failing status must not be woken into a busy loop."""
        await sleep_unless(self._clock, self._wake, seconds)
        self._wake.clear()

    async def _compute(self) -> None:
        state, images = await asyncio.gather(self._runtime.state(), self._runtime.images())
        if not state.error:
            self._images, self._runtime_state = images, state
            self._runtime_seen = self._clock.monotonic()
        elif self._clock.monotonic() - self._runtime_seen < RUNTIME_GRACE:
            # A restart of the runtime is no news: containers run on without it.
            if self._runtime_state.error:
                self._runtime_state = state
            state = self._runtime_state
        else:
            last = self._runtime_state
            state = dataclasses.replace(state, name=last.name, version=last.version)
        self.status = status.build(
            self.plan,
            machine=self.machine,
            nodefs=facts.nodefs_capacity(self._root),
            runtime=state,
            addresses=self._addresses(),
            images=self._images,
            pressures=self._pressures(),
            problems=self._problems(),
            devices=self._devices(),
        )
        self._note_readiness()

    def _note_readiness(self) -> None:
        condition = next(item for item in self.status.conditions if item.type == "Ready")
        ready = condition.status == "True"
        if condition.message != self._said:
            log.info("node ready=%s message=%r", str(ready).lower(), condition.message)
            self._said = condition.message
        if ready != self.ready and self._posted is not None:
            reason = "NodeReady" if ready else "NodeNotReady"
            self._say("Normal", reason, f"Node {self.plan.name} status is now: {reason}")
        self.ready = ready

    def _note_reboot(self, before: str) -> None:
        """Tell when the machine was started anew since the status that the API still has."""
        now = self.machine.boot_id
        if before and now and before != now:
            name = self.plan.name
            self._say("Warning", "Rebooted", f"Node {name} has been rebooted, boot id: {now}")

    def _say(self, kind: str, reason: str, message: str) -> None:
        self._events.record(node_reference(self.plan.name), type=kind, reason=reason, message=message)

    async def _post(self) -> None:
        """Post the status if it is news or old."""
        client = self._client
        seen = status.comparable(self.status)
        moment = self._clock.monotonic()
        if client is None or (seen == self._posted and moment - self._posted_at < self._report_every):
            return
        if self._posted is None and self._runtime_state.error and moment - self._runtime_seen < RUNTIME_GRACE:
            return  # just started: a status without the runtime's word would flip a node that is ready
        if self.node is None or self._posted is None:
            self.node = await client.get(NODES, self.plan.name)
        if self._posted is None:
            self._note_reboot(self.node.status.node_info.boot_id)
        for reason in conditions.pressure_events(self.status.conditions, self.node.status.conditions):
            self._say("Normal", reason, f"Node {self.plan.name} status is now: {reason}")
        stamped = conditions.stamp(
            self.status.conditions, self.node.status.conditions, now=format_time(self._clock.now())
        )
        whole = msgspec.structs.replace(self.status, conditions=stamped)
        body = status_patch(whole, self.node.status)
        self.node = await client.patch(
            NODES, self.plan.name, body, subresource="status", kind=PatchKind.STRATEGIC
        )
        self._posted, self._posted_at = seen, moment


def status_patch(new: NodeStatus, old: NodeStatus) -> JSON:
    """The strategic merge patch from `old` to `new`.

    Conditions and addresses merge by `type`, so addresses are replaced as a whole; capacity that is gone (a
    huge page size, a device) is set to null.
    """
    body = msgspec.to_builtins(new)
    for field, before in (("capacity", old.capacity), ("allocatable", old.allocatable)):
        gone = {name: None for name in before if name not in body.get(field, {}) and "/" not in name}
        body.setdefault(field, {}).update(gone)
    body["addresses"] = [*body.get("addresses", []), {"$patch": "replace"}]
    for field in ("images", "volumesInUse", "runtimeHandlers", "declaredFeatures"):
        body.setdefault(field, [])
    return {"status": body}
