"""What feeds the picture: watches of the API, and the pods that this node is about to start.

NetworkPolicies are always watched; Namespaces and Pods of the whole cluster only while there is a policy, so
a cluster without policies costs its nodes one idle watch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from agent.api import resources
from agent.api.client import ApiClient
from agent.api.structs import NetworkPolicy, Pod
from agent.api.watch import Informer, Selection
from agent.policy import objects
from agent.policy.model import parse
from agent.policy.objects import SlimNamespace, SlimPod
from agent.policy.picture import Picture

log = logging.getLogger(__name__)


class Feed:
    """Keeps `picture` equal to the cluster.

    Args:
        node_name: of this node.
        on_change: called after each change, also of `known`.
    """

    def __init__(self, *, node_name: str, on_change: Callable[[], None]) -> None:
        self.picture = Picture()
        self._policies_listed = self._peers_listed = False
        self._node = node_name
        self._on_change = on_change
        self._registered: dict[str, tuple[Pod, tuple[str, ...]]] = {}
        self._listed: dict[str, SlimPod] = {}
        self._some = asyncio.Event()  # there are policies
        self._none = asyncio.Event()

    @property
    def known(self) -> bool:
        """Whether the picture is complete: policies are listed and, if there are any, pods and namespaces."""
        return self._policies_listed and (self._peers_listed or not self.picture.policies)

    # --- pods of this node --------------------------------------------------------------------------------

    def register(self, pod: Pod, ips: Sequence[str]) -> None:
        """A pod of this node has these addresses, whatever the API says by now."""
        self._registered[pod.metadata.uid] = (pod, tuple(ips))
        self._put_registered(pod.metadata.uid)

    def forget(self, uid: str) -> None:
        """Nothing of a pod is left on this node."""
        if self._registered.pop(uid, None) is not None and uid not in self._listed:
            self.picture.drop_pod(uid)
            self._on_change()

    def _put_registered(self, uid: str) -> None:
        """A pod of ours, as its newest object is."""
        if self.picture.policies:
            pod, ips = self._registered[uid]
            self.picture.put_pod(objects.fact(self._listed.get(uid, pod), node=self._node, ips=ips))

    # --- watches ------------------------------------------------------------------------------------------

    async def run(self, client: ApiClient) -> None:
        """Watch until cancelled; a second run starts from nothing."""
        self.picture, self._listed = Picture(), {}
        self._policies_listed = self._peers_listed = False
        self._some.clear()
        self._none.clear()
        policies = Informer(
            client,
            Selection(resources.NETWORK_POLICIES),
            self._policy_changed,
            on_synced=self._all_policies,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(policies.run(), name="policy-watch")
            while True:
                await self._some.wait()
                await self._follow_peers(client)

    def _policy_changed(self, old: NetworkPolicy | None, new: NetworkPolicy | None) -> None:
        if new is not None:
            policy = parse(new)
            for problem in policy.problems:
                log.warning("a part of a policy allows nothing policy=%s part=%s", policy.key, problem)
            self.picture.put_policy(policy)
        elif old is not None:
            self.picture.drop_policy(f"{old.metadata.namespace}/{old.metadata.name}")
        if self.picture.policies:
            self._some.set()
            self._none.clear()
        else:
            self._some.clear()
            self._none.set()
        self._on_change()

    def _all_policies(self) -> None:
        self._policies_listed = True
        self._on_change()

    async def _follow_peers(self, client: ApiClient) -> None:
        """Watch pods and namespaces until no policy is left."""
        pods = Selection(objects.PODS, field_selector=objects.LIVE_PODS)
        watches = (
            Informer(client, Selection(objects.NAMESPACES), self._namespace_changed),
            Informer(client, pods, self._pod_changed),
        )
        for uid in self._registered:
            self._put_registered(uid)
        tasks = [asyncio.create_task(watch.run(), name="policy-peers") for watch in watches]
        tasks.append(asyncio.create_task(self._all_peers([watch.synced for watch in watches])))
        try:
            await self._none.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._forget_peers()

    async def _all_peers(self, synced: Sequence[asyncio.Event]) -> None:
        for event in synced:
            await event.wait()
        self._peers_listed = True
        self._on_change()

    def _forget_peers(self) -> None:
        """Without policies nobody's address matters. One that came meanwhile waits for new lists."""
        policies = list(self.picture.policies.values())
        self.picture, self._listed, self._peers_listed = Picture(), {}, False
        for policy in policies:
            self.picture.put_policy(policy)
        self._on_change()

    def _namespace_changed(self, old: SlimNamespace | None, new: SlimNamespace | None) -> None:
        if new is not None:
            self.picture.put_namespace(new.metadata.name, new.metadata.labels)
        elif old is not None:
            self.picture.drop_namespace(old.metadata.name)
        self._on_change()

    def _pod_changed(self, old: SlimPod | None, new: SlimPod | None) -> None:
        if old is not None and (new is None or new.metadata.uid != old.metadata.uid):
            uid = old.metadata.uid
            self._listed.pop(uid, None)
            if uid in self._registered:
                self._put_registered(uid)  # its containers may run for a while yet
            else:
                self.picture.drop_pod(uid)
        if new is not None:
            self._listed[new.metadata.uid] = new
            _, ips = self._registered.get(new.metadata.uid, (None, ()))
            self.picture.put_pod(objects.fact(new, node=self._node, ips=ips))
        self._on_change()
