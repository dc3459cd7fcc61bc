"""Mirror pods: the API's picture of static pods. Level-triggered: what there is against what there should be.

Deleting a mirror pod does not stop the static pod, so it is made again; a mirror whose static pod is gone, or
is another one by now, is deleted. NodeRestriction wants the node as the owner of its mirror pods.

Source: pkg/kubelet/pod/mirror_client.go (v1.37), KEP-1314.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

import msgspec

from agent.api import errors
from agent.api.client import ApiClient
from agent.api.resources import PODS
from agent.api.structs import ObjectMeta, OwnerReference, Pod, PodStatus
from agent.pods import spec
from agent.pods.restart import retry_delay
from host.clocks import Clock

log = logging.getLogger(__name__)


def mirror_of(pod: Pod, *, node_name: str, node_uid: str) -> Pod:
    """The mirror pod to create for a static pod."""
    meta = pod.metadata
    notes = {**meta.annotations, spec.MIRROR_ANNOTATION: meta.annotations[spec.HASH_ANNOTATION]}
    owner = OwnerReference(api_version="v1", kind="Node", name=node_name, uid=node_uid, controller=True)
    shown = ObjectMeta(
        name=meta.name,
        namespace=meta.namespace,
        labels=meta.labels,
        annotations=notes,
        owner_references=(owner,),
    )
    return msgspec.structs.replace(pod, metadata=shown, status=PodStatus())


def plan_mirrors(statics: Iterable[Pod], mirrors: Iterable[Pod]) -> tuple[list[Pod], list[Pod]]:
    """Static pods that need a mirror, and mirrors that have to go. Pure."""
    wanted = {(p.metadata.namespace, p.metadata.name): p for p in statics}
    good, stale = set(), []
    for mirror in mirrors:
        key = (mirror.metadata.namespace, mirror.metadata.name)
        pod = wanted.get(key)
        same = pod is not None and (
            pod.metadata.annotations[spec.HASH_ANNOTATION]
            == mirror.metadata.annotations[spec.MIRROR_ANNOTATION]
        )
        if same and mirror.metadata.deletion_timestamp is None:
            good.add(key)
        else:
            stale.append(mirror)
    return [pod for key, pod in wanted.items() if key not in good], stale


class MirrorPods:
    """Keeps the mirrors right; `wake` after any change of static pods or mirrors.

    Args:
        node_uid: the Node object's uid, empty while the node is not registered; nothing is created before.
        statics, mirrors: the two sides, asked at each round.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        clock: Clock,
        node_name: str,
        node_uid: Callable[[], str],
        statics: Callable[[], Iterable[Pod]],
        mirrors: Callable[[], Iterable[Pod]],
    ) -> None:
        self._client = client
        self._clock = clock
        self._node_name = node_name
        self._node_uid = node_uid
        self._statics = statics
        self._mirrors = mirrors
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Look again soon."""
        self._changed.set()

    async def run(self) -> None:
        """Work until cancelled."""
        failures = 0
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._round()
                failures = 0
            except errors.ApiError as exc:
                failures += 1
                log.info("mirror pods not up to date error=%s", exc)
                await self._clock.sleep(retry_delay(failures, first=0.5, maximum=15.0))
                self._changed.set()

    async def _round(self) -> None:
        missing, stale = plan_mirrors(self._statics(), self._mirrors())
        for mirror in stale:
            await self._delete(mirror)
        node_uid = self._node_uid()
        if missing and not node_uid:
            raise errors.Temporary("the node is not registered yet")
        for pod in missing:
            try:
                await self._client.create(PODS, mirror_of(pod, node_name=self._node_name, node_uid=node_uid))
            except errors.AlreadyExists:
                log.debug("mirror pod is there already pod=%s", pod.metadata.name)

    async def _delete(self, mirror: Pod) -> None:
        meta = mirror.metadata
        try:
            await self._client.delete(
                PODS, meta.name, namespace=meta.namespace, uid=meta.uid, grace_period_seconds=0
            )
        except (errors.NotFound, errors.Conflict):
            return
