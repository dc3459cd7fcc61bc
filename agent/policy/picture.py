"""From policies, namespaces and pods to what the table shall hold, change by change.

Order of calls does not matter: after any sequence of changes the table is the one that the final objects
give. Nothing here waits or asks; the component feeds it and writes what it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agent.policy import rules
from agent.policy.isolation import Isolation, policies_for
from agent.policy.model import Peers, Policy
from agent.policy.objects import PodFact
from agent.policy.peers import PeerSets, PortName, PortSets
from host.rules.nft import TableState

_NOTHING: Mapping[str, str] = {}


class Picture:
    """The cluster as this node's policies see it, and the table that follows from it."""

    def __init__(self) -> None:
        self.table = TableState("inet", rules.TABLE)
        self.policies: dict[str, Policy] = {}
        self.pods: dict[str, PodFact] = {}
        self._by_namespace: dict[str, dict[str, Policy]] = {}
        self._namespaces: dict[str, Mapping[str, str]] = {}
        self._in_namespace: dict[str, set[str]] = {}
        self._peers = PeerSets(self.table)
        self._ports = PortSets(self.table)
        self._port_users: dict[PortName, set[str]] = {}
        self._isolation = Isolation(self.table)
        self.table.put_counter(rules.DROPPED)
        for name, kind in rules.base_sets():
            self.table.put_set(name, kind)
        for name, hook, content in rules.base_chains():
            self.table.put_chain(name, content, hook=hook)

    @property
    def isolated(self) -> int:
        """How many pods of this node a policy isolates."""
        return self._isolation.count

    # --- pods and namespaces ------------------------------------------------------------------------------

    def put_pod(self, pod: PodFact) -> None:
        """A new or changed pod."""
        known = self.pods.get(pod.uid)
        if known == pod:
            return
        self.pods[pod.uid] = pod
        self._in_namespace.setdefault(pod.namespace, set()).add(pod.uid)
        self._peers.put(pod, self._labels(pod))
        self._render_users(self._ports.put(pod))
        if pod.local:
            self._isolation.put(pod, policies_for(pod, self._by_namespace))
        elif known is not None and known.local:
            self._isolation.drop(pod.uid)

    def drop_pod(self, uid: str) -> None:
        """A pod is gone."""
        pod = self.pods.pop(uid, None)
        if pod is None:
            return
        members = self._in_namespace[pod.namespace]
        members.discard(uid)
        if not members:
            del self._in_namespace[pod.namespace]
        self._peers.drop(uid)
        self._isolation.drop(uid)
        self._render_users(self._ports.drop(pod))

    def put_namespace(self, name: str, labels: Mapping[str, str]) -> None:
        """A new or changed namespace."""
        if self._namespaces.get(name) != labels:
            self._namespaces[name] = labels
            self._namespace_changed(name)

    def drop_namespace(self, name: str) -> None:
        """A namespace is gone."""
        if self._namespaces.pop(name, None) is not None:
            self._namespace_changed(name)

    def _namespace_changed(self, name: str) -> None:
        for uid in self._in_namespace.get(name, ()):
            self._peers.put(self.pods[uid], self._namespaces.get(name, _NOTHING))

    def _labels(self, pod: PodFact) -> Mapping[str, str]:
        return self._namespaces.get(pod.namespace, _NOTHING)

    def _labelled_pods(self) -> Iterator[tuple[PodFact, Mapping[str, str]]]:
        return ((pod, self._labels(pod)) for pod in self.pods.values())

    # --- policies -----------------------------------------------------------------------------------------

    def put_policy(self, policy: Policy) -> None:
        """A new or changed policy."""
        old = self.policies.get(policy.key)
        if old == policy:
            return
        # The new one's sets first: what both use is not emptied and filled again.
        for peers in _peers_of(policy):
            self._peers.use(peers, self._labelled_pods)
        for name in _ports_of(policy):
            self._ports.use(name, self.pods.values())
            self._port_users.setdefault(name, set()).add(policy.key)
        self.policies[policy.key] = policy
        self._by_namespace.setdefault(policy.namespace, {})[policy.key] = policy
        self._render(policy)
        if old is not None:
            self._leave(old, now=policy)
        self._isolation.put_policy(policy, self._in_namespace.get(policy.namespace, ()))

    def drop_policy(self, key: str) -> None:
        """A policy is gone."""
        policy = self.policies.pop(key, None)
        if policy is None:
            return
        namespace = self._by_namespace[policy.namespace]
        del namespace[key]
        if not namespace:
            del self._by_namespace[policy.namespace]
        self._isolation.drop_policy(key, self._in_namespace.get(policy.namespace, ()))
        for direction in rules.DIRECTIONS:
            if policy.allows(direction) is not None:
                self.table.drop_chain(rules.policy_chain(direction, key))
        self._leave(policy)

    def _leave(self, old: Policy, *, now: Policy | None = None) -> None:
        """Give up the sets of a policy that is gone, or was until `now`."""
        for peers in _peers_of(old):
            self._peers.leave(peers)
        kept = _ports_of(now) if now else set()
        for name in _ports_of(old):
            self._ports.leave(name)
            if name not in kept:
                self._port_users[name].discard(old.key)
                if not self._port_users[name]:
                    del self._port_users[name]

    def _render(self, policy: Policy) -> None:
        numbers = self._ports.numbers
        for direction in rules.DIRECTIONS:
            chain = rules.policy_chain(direction, policy.key)
            if policy.allows(direction) is not None:
                self.table.put_chain(chain, rules.policy_rules(policy, direction, numbers))
            elif self.table.chain(chain) is not None:
                # No pod's chain may lead to it any more.
                self._isolation.put_policy(policy, self._in_namespace.get(policy.namespace, ()))
                self.table.drop_chain(chain)

    def _render_users(self, names: set[PortName]) -> None:
        for key in {key for name in names for key in self._port_users.get(name, ())}:
            self._render(self.policies[key])


def _peers_of(policy: Policy) -> set[Peers]:
    allows = (*(policy.ingress or ()), *(policy.egress or ()))
    return {peer for allow in allows for peer in allow.peers or () if isinstance(peer, Peers)}


def _ports_of(policy: Policy) -> set[PortName]:
    allows = (*(policy.ingress or ()), *(policy.egress or ()))
    return {(port.protocol, port.name) for allow in allows for port in allow.ports or () if port.name}
