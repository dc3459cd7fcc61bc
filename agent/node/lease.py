"""The node's heartbeat: a Lease in kube-node-lease, renewed every quarter of its duration.

Its own loop and its own time limit, so that neither a slow runtime nor a slow status patch makes the node
look lost. Source: KEP-589, k8s.io/component-helpers/apimachinery/lease/controller.go.
"""

from __future__ import annotations

import logging

import msgspec

from agent.api import errors
from agent.api.client import ApiClient
from agent.api.meta import ObjectMeta, OwnerReference
from agent.api.resources import LEASES
from agent.api.structs import Lease, LeaseSpec, Node
from agent.api.times import format_micro_time
from host.clocks import Clock

log = logging.getLogger(__name__)
NAMESPACE = "kube-node-lease"
FIRST_RETRY, LAST_RETRY = 0.2, 7.0
"""Bounds in seconds of the delay after a failure; the lease must not run out meanwhile."""


class LeaseKeeper:
    """Renews one lease. `run()` until cancelled; `renewed` is the monotonic time of the last success."""

    def __init__(self, client: ApiClient, *, node_name: str, duration: int, clock: Clock) -> None:
        self._client = client
        self._name = node_name
        self._duration = duration
        self._clock = clock
        self._lease: Lease | None = None
        self._node: Node | None = None

    def own(self, node: Node) -> None:
        """The registered Node, which a new lease belongs to, so that it goes when the Node goes."""
        self._node = node

    async def run(self) -> None:
        """Renew until cancelled."""
        delay = 0.0
        while True:
            try:
                await self.renew()
                delay = 0.0
            except errors.ApiError as exc:
                delay = min(LAST_RETRY, delay * 2 or FIRST_RETRY)
                log.log(errors.log_level(exc), "lease not renewed node=%s error=%s", self._name, exc)
            await self._clock.sleep(delay or self._duration / 4)

    async def renew(self) -> None:
        """One renewal: an update of the lease we know, a read or a creation when we know none."""
        if self._lease is None:
            try:
                self._lease = await self._client.get(LEASES, self._name, namespace=NAMESPACE)
            except errors.NotFound:
                self._lease = await self._client.create(LEASES, self._renewed(Lease()))
                return
        try:
            self._lease = await self._client.update(LEASES, self._renewed(self._lease))
        except (errors.Conflict, errors.NotFound):
            self._lease = None
            raise

    def _renewed(self, lease: Lease) -> Lease:
        meta = lease.metadata if lease.metadata.name else ObjectMeta(name=self._name, namespace=NAMESPACE)
        if self._node is not None and not meta.owner_references:
            owner = OwnerReference(
                api_version="v1", kind="Node", name=self._name, uid=self._node.metadata.uid
            )
            meta = msgspec.structs.replace(meta, owner_references=(owner,))
        spec = LeaseSpec(
            holder_identity=self._name,
            lease_duration_seconds=self._duration,
            acquire_time=lease.spec.acquire_time,
            renew_time=format_micro_time(self._clock.now()),
        )
        return Lease(metadata=meta, spec=spec)
