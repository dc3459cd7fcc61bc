"""The policy component: NetworkPolicies, Namespaces and Pods in; one nftables table out.

    watches ──> Feed ──> Picture ──> changes ──> one transaction
    ready(pod) ───┘                                 └──> the pod's containers may start

Level-triggered: every few seconds the table is compared with what it shall be, and after a failure or a
stranger's hand it is written as a whole, in one transaction without a gap. The table stays when the agent
ends, so that a restart opens nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from agent.api import errors, resources
from agent.api.client import ApiClient
from agent.api.structs import Pod
from agent.policy import objects
from agent.policy.feed import Feed
from agent.policy.kernel import Kernel, NftKernel
from agent.policy.metrics import PolicyMetrics
from agent.policy.objects import PodFact
from agent.server.exposition import Family
from host.clocks import Clock, SystemClock, sleep_unless
from host.errors import HostError
from host.rules.nft import TableState

log = logging.getLogger(__name__)

Mode = Literal["auto", "on", "off"]
_FEW = 256
"""So many elements, and nothing else, are written without executing nft."""
_NOBODY = "metadata.name=nodelet-asks-whether-it-may-list"


@dataclass(frozen=True)
class Pace:
    """When to do what, in seconds.

    Attributes:
        interval: at least this long between two writes, unless a pod waits for one.
        check: how often the table is compared, and other agents are looked for.
        retry: the first pause after a failure; doubles up to `longest`.
    """

    interval: float = 0.1
    check: float = 15.0
    retry: float = 1.0
    longest: float = 30.0


class PolicyAgent:
    """Enforces NetworkPolicy for the pods of this node.

    Args:
        client: None without an API: then there are no policies.
        node_name: of this node.
        mode: "auto" steps back when another agent does it, or when the API server does not let us read
            what is needed; "on" enforces in any case; "off" never does.
        other_agent: what shows that another one enforces policies here ("" when none does); blocks.
        kernel: where the table goes.
        report: told (reason, message) of what a person should know, for an Event of the Node.

    The constructor does nothing; `run()` works until it is cancelled.
    """

    def __init__(
        self,
        client: ApiClient | None,
        *,
        node_name: str,
        mode: Mode = "auto",
        other_agent: Callable[[], str] = str,
        kernel: Kernel | None = None,
        clock: Clock | None = None,
        pace: Pace | None = None,
        report: Callable[[str, str], None] | None = None,
    ) -> None:
        self._client = client
        self._mode = mode
        self._other_agent = other_agent
        self._kernel = kernel or NftKernel()
        self._clock = clock or SystemClock()
        self._pace = pace or Pace()
        self._report = report
        self._metrics = PolicyMetrics()
        self._feed = Feed(node_name=node_name, on_change=self._changed)
        self._resting = "there is no API" if client is None else "it is off" if mode == "off" else ""
        self._problem = ""
        self._bridge_problem = ""
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._round = asyncio.Event()
        self._kernel_in_use = asyncio.Lock()
        self._table: TableState | None = None
        """The table that the kernel holds as it was written; None: unknown, or none of ours."""
        self._cleared = False
        self._may_read = False
        self._asked = self._done = 0

    @property
    def resting(self) -> str:
        """Why policies are not enforced on this node; "" when they are."""
        return self._resting

    @property
    def problem(self) -> str:
        """What keeps policies from being in force, for people; "" for nothing."""
        return self._problem or ("" if self._feed.known else "policies have not been read yet")

    @property
    def pods(self) -> Iterable[PodFact]:
        """The pods of the cluster that policies may concern; none without a policy."""
        return self._feed.picture.pods.values()

    def families(self) -> Sequence[Family]:
        """For /metrics."""
        enforced = self._feed.known and not self._resting
        try:
            dropped = self._kernel.dropped() if self._table is not None else 0
        except HostError as exc:
            log.info("dropped packets are not counted: %s", exc)
            dropped = 0
        return self._metrics.families(self._feed.picture, enforced=enforced, dropped=dropped)

    # --- what pods ask ------------------------------------------------------------------------------------

    async def ready(self, pod: Pod, ips: Sequence[str], *, early: bool) -> None:
        """Return when every policy known now is in force for a pod whose containers are about to start.

        Waits for the first list of policies, and then for the kernel; the caller bounds the wait. A static
        pod does not wait for an API server that has not been reached yet: it may be what makes it reachable.

        Args:
            pod: about to start.
            ips: its addresses; it may be called again with others.
            early: whether it starts although the API server has not been reached: it comes from a file, or
                it ran before this agent began, under what the kernel holds since.
        """
        if pod.spec.host_network:
            return
        self._feed.register(pod, ips)
        if self._resting or self._in_force():
            return
        if not self._feed.known and early:
            log.info("pod does not wait for policies, the API is away pod=%s", pod.metadata.name)
            return
        self._asked += 1
        mine = self._asked
        self._urgent.set()
        self._wake.set()
        while self._done < mine and not self._resting:
            await self._round.wait()

    def forget(self, uid: str) -> None:
        """Nothing of a pod is left on this node."""
        self._feed.forget(uid)

    def _in_force(self) -> bool:
        """Whether the kernel holds all that is known."""
        picture = self._feed.picture
        if not self._feed.known:
            return False
        return not picture.policies or (self._table is picture.table and not self._table.changes())

    # --- running ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until cancelled."""
        client = self._client
        if client is None or self._mode == "off":
            await self._leave_nothing()
            await asyncio.Event().wait()
        assert client is not None
        await self._look_around(client)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._feed.run(client), name="policy-feed")
            tasks.create_task(self._sync_forever(), name="policy-sync")
            tasks.create_task(self._check_forever(client), name="policy-check")

    async def _leave_nothing(self) -> None:
        """Remove the table that an earlier run with another setting left."""
        try:
            if await asyncio.to_thread(self._kernel.differs, None):
                await asyncio.to_thread(self._kernel.write, self._feed.picture.table.removal)
        except HostError as exc:
            log.info("no nftables table of policies was looked for: %s", exc)

    def _changed(self) -> None:
        self._wake.set()

    async def _sync_forever(self) -> None:
        retry = self._pace.retry
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._urgent.clear()
            try:
                async with self._kernel_in_use:
                    await self._sync()
                retry, self._problem = self._pace.retry, ""
            except HostError as exc:
                self._table, self._problem = None, str(exc)
                self._metrics.failed()
                log.error("policies not written, next try in %.0f s: %s", retry, exc)
                await self._clock.sleep(retry)
                retry = min(retry * 2, self._pace.longest)
                self._wake.set()
                continue
            finished, self._round = self._round, asyncio.Event()
            finished.set()
            await sleep_unless(self._clock, self._urgent, self._pace.interval)

    async def _sync(self) -> None:
        """One transaction, if anything is to be changed. Until all is known an older run's table stays."""
        goal, picture = self._asked, self._feed.picture
        if self._resting or (self._feed.known and not picture.policies):
            if not self._cleared:
                await asyncio.to_thread(self._kernel.write, picture.table.removal)
            self._table, self._cleared = None, True
        elif not self._feed.known:
            return
        else:
            await self._write(picture.table)
        self._done = goal

    async def _write(self, table: TableState) -> None:
        whole = self._table is not table
        elements = None if whole else table.element_changes()
        few = elements is not None and len(elements) <= _FEW
        text = "" if few else table.whole() if whole else table.changes()
        if not (text or elements):
            return
        content = table.content if whole else None
        table.mark_written()
        self._table, self._cleared = None, False  # unknown while it is under way
        began = self._clock.monotonic()
        if elements is not None and few:
            await asyncio.to_thread(self._kernel.write_elements, elements)
        else:
            await asyncio.to_thread(self._kernel.write, text, whole=content)
        self._table = table
        seconds = self._clock.monotonic() - began
        self._metrics.written(seconds, whole=whole)
        size = len(elements or ()) if few else len(text)
        level = logging.INFO if whole else logging.DEBUG
        log.log(
            level, "policies written whole=%s elements=%s size=%d seconds=%.3f", whole, few, size, seconds
        )

    # --- looking ------------------------------------------------------------------------------------------

    async def _check_forever(self, client: ApiClient) -> None:
        while True:
            await self._clock.sleep(self._pace.check)
            await self._look_around(client)
            async with self._kernel_in_use:
                try:
                    reason = await self._compare()
                except HostError as exc:
                    reason = f"cannot be read: {exc}"
            if reason:
                log.warning("the policies' table drifted, writing it again: %s", reason)
                self._table, self._cleared = None, False
                self._metrics.drifted()
                self._wake.set()

    async def _compare(self) -> str:
        """How the kernel differs from what was written last."""
        table = self._table
        if table is None or not await asyncio.to_thread(self._kernel.touched):
            return ""
        if text := table.changes():  # what is written now is what can be compared
            table.mark_written()
            wanted, self._table = table.content, None
            await asyncio.to_thread(self._kernel.write, text)
            self._table = table
        else:
            wanted = table.content
        return await asyncio.to_thread(self._kernel.differs, wanted)

    async def _look_around(self, client: ApiClient) -> None:
        """Whether to enforce policies here at all, and whether the bridge lets us."""
        reason = await self._reason_to_rest(client) if self._mode == "auto" else ""
        if reason != self._resting:
            self._resting, self._table, self._cleared = reason, None, False
            if reason:
                log.warning("network policies are not enforced here: %s", reason)
            else:
                log.info("network policies are enforced here")
            self._wake.set()
        problem = "" if reason else await asyncio.to_thread(self._kernel.filter_bridge)
        if problem and problem != self._bridge_problem:
            log.warning("pods on one bridge are not kept apart by network policies: %s", problem)
        self._bridge_problem = problem

    async def _reason_to_rest(self, client: ApiClient) -> str:
        try:
            other = await asyncio.to_thread(self._other_agent)
        except HostError as exc:
            return f"cannot look for other agents: {exc}"
        if other:
            return f"{other} does it"
        if not self._may_read:
            try:
                await client.list(resources.NETWORK_POLICIES, field_selector=_NOBODY)
                await client.list(objects.NAMESPACES, field_selector=_NOBODY)
                await client.list(objects.PODS, field_selector=_NOBODY)
            except errors.Forbidden as exc:
                if self._report is not None and exc.message != self._resting:
                    self._report("NetworkPolicyNotEnforced", exc.message)
                return exc.message
            except errors.ApiError:
                return self._resting  # the server is away: nothing new is known
            self._may_read = True
        return ""
