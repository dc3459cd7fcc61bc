"""Which policies isolate the pods of this node: the maps from their addresses to chains.

Pods that the same policies isolate share one chain, so a pod of a Deployment more is two map elements more.
An address that two pods claim (one of them ended, and its object is still there) is the newer one's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from agent.policy import rules
from agent.policy.holdings import Element, Holdings
from agent.policy.model import Policy
from agent.policy.objects import PodFact, family
from agent.policy.rules import Direction
from host.rules import nft
from host.rules.nft import TableState

_Combination = tuple[Direction, tuple[str, ...]]


class Isolation:
    """The isolated pods of this node."""

    def __init__(self, table: TableState) -> None:
        self._table = table
        self._holdings = Holdings(table)
        self._users: Counter[_Combination] = Counter()
        self._keys: dict[str, dict[Direction, set[str]]] = {}
        self._of: dict[str, frozenset[_Combination]] = {}
        self._claims: dict[str, list[str]] = {}
        self._pods: dict[str, PodFact] = {}

    @property
    def count(self) -> int:
        """How many pods are isolated."""
        return len(self._of)

    def put(self, pod: PodFact, policies: Iterable[Policy]) -> None:
        """A pod of this node as it is now, and the policies of its namespace."""
        known = self._pods.get(pod.uid)
        if known is None or known.ips != pod.ips:
            self._claim(known, pod)
        self._pods[pod.uid] = pod
        selecting = [policy for policy in policies if policy.pods.matches(pod.labels)] if pod.ips else []
        self._keys[pod.uid] = {
            direction: {policy.key for policy in selecting if policy.allows(direction) is not None}
            for direction in rules.DIRECTIONS
        }
        self._set(pod)

    def put_policy(self, policy: Policy, uids: Iterable[str]) -> None:
        """A new or changed policy, and the pods of its namespace; only those it concerns cost anything."""
        for pod in (self._pods[uid] for uid in uids if uid in self._pods):
            selected = bool(pod.ips) and policy.pods.matches(pod.labels)
            changed = False
            for direction, keys in self._keys[pod.uid].items():
                wanted = selected and policy.allows(direction) is not None
                changed = changed or wanted != (policy.key in keys)
                (keys.add if wanted else keys.discard)(policy.key)
            if changed:
                self._set(pod)

    def drop_policy(self, key: str, uids: Iterable[str]) -> None:
        """A policy is gone."""
        for pod in (self._pods[uid] for uid in uids if uid in self._pods):
            if any(key in keys for keys in self._keys[pod.uid].values()):
                for keys in self._keys[pod.uid].values():
                    keys.discard(key)
                self._set(pod)

    def drop(self, uid: str) -> None:
        """A pod of this node is gone."""
        pod = self._pods.pop(uid, None)
        if pod is not None:
            del self._keys[uid]
            self._set(pod)
            self._claim(pod, None)

    def _set(self, pod: PodFact) -> None:
        keys_of = self._keys.get(pod.uid, {})
        now = frozenset((direction, tuple(sorted(keys))) for direction, keys in keys_of.items() if keys)
        before = self._of.pop(pod.uid, frozenset())
        if now:
            self._of[pod.uid] = now
        for combination in now - before:
            self._users[combination] += 1
            if self._users[combination] == 1:
                direction, keys = combination
                comments = {key: nft.quote(key) for key in keys}
                chain = rules.pods_chain(direction, keys)
                self._table.put_chain(chain, rules.pods_rules(direction, keys, comments))
        self._show(pod)
        for combination in before - now:
            self._users[combination] -= 1
            if not self._users[combination]:
                del self._users[combination]
                self._table.drop_chain(rules.pods_chain(*combination))

    def _show(self, pod: PodFact) -> None:
        """The map elements of a pod, for the addresses that are its own."""
        mine = [ip for ip in pod.ips if self._claims[ip][-1] == pod.uid]
        combinations = self._of.get(pod.uid, frozenset())
        elements: set[Element] = set()
        for ip in mine:
            for direction, keys in combinations:
                chain = rules.pods_chain(direction, keys)
                elements.add((rules.pods_map(direction, family(ip)), f"{ip} : goto {chain}"))
            if combinations:
                elements.add((f"{rules.ALONE}-{family(ip)}", f"{ip} . {ip}"))
        self._holdings.hold("pod", pod.uid, frozenset(elements))

    def _claim(self, old: PodFact | None, new: PodFact | None) -> None:
        """Addresses go from hand to hand: who has one no more gives it up before another takes it."""
        before, now = set(old.ips if old else ()), set(new.ips if new else ())
        for ip in before - now:
            claims = self._claims[ip]
            claims.remove(old.uid if old else "")
            if not claims:
                del self._claims[ip]
            elif (heir := self._pods.get(claims[-1])) is not None:
                self._show(heir)
        for ip in now - before:
            claims = self._claims.setdefault(ip, [])
            claims.append(new.uid if new else "")
            if len(claims) > 1 and (loser := self._pods.get(claims[-2])) is not None:
                self._show(loser)


def policies_for(pod: PodFact, by_namespace: Mapping[str, Mapping[str, Policy]]) -> Iterable[Policy]:
    """The policies that can isolate a pod: those of its namespace."""
    return by_namespace.get(pod.namespace, {}).values()
