"""Sets of pod addresses that policies name: pods by labels, and pods by the name of a port.

Equal selectors of any number of policies share one pair of sets. An index by labels finds the few of
thousands that a pod can be in, so a pod's change costs what it changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from agent.policy import rules
from agent.policy.holdings import Holdings
from agent.policy.model import Peers
from agent.policy.objects import PodFact, family
from host.rules.nft import TableState

_Anchor = tuple[str, tuple[str, str] | None]
"""(namespace or "" for any, a label that a selected pod has or None)"""

PortName = tuple[str, str]
"""(protocol, name)"""


class PeerSets:
    """One pair of sets for each distinct pod selector that some policy uses."""

    def __init__(self, table: TableState) -> None:
        self._table = table
        self._holdings = Holdings(table)
        self._users: Counter[Peers] = Counter()
        self._index: dict[_Anchor, set[Peers]] = {}
        self._member_of: dict[str, set[Peers]] = {}

    def use(self, peers: Peers, pods: Callable[[], Iterable[tuple[PodFact, Mapping[str, str]]]]) -> None:
        """One user more; for the first one `pods` (each with its namespace's labels) are looked through."""
        self._users[peers] += 1
        if self._users[peers] > 1:
            return
        for version in rules.FAMILIES:
            self._table.put_set(rules.peers_set(peers, version), rules.address_type(version))
        for anchor in _anchors(peers):
            self._index.setdefault(anchor, set()).add(peers)
        for pod, labels in pods():
            if _selects(peers, pod, labels):
                self._join(peers, pod)

    def leave(self, peers: Peers) -> None:
        """One user less; the sets go with the last one."""
        self._users[peers] -= 1
        if self._users[peers]:
            return
        del self._users[peers]
        for anchor in _anchors(peers):
            self._index[anchor].discard(peers)
            if not self._index[anchor]:
                del self._index[anchor]
        self._holdings.release(peers)
        for member_of in self._member_of.values():
            member_of.discard(peers)
        for version in rules.FAMILIES:
            self._table.drop_set(rules.peers_set(peers, version))

    def put(self, pod: PodFact, namespace: Mapping[str, str]) -> None:
        """A pod as it is now; `namespace` are its namespace's labels."""
        now = {peers for peers in self._candidates(pod) if _selects(peers, pod, namespace)}
        for peers in self._member_of.get(pod.uid, set()) - now:
            self._holdings.hold(peers, pod.uid, frozenset())
        self._member_of[pod.uid] = set()
        for peers in now:
            self._join(peers, pod)

    def drop(self, uid: str) -> None:
        """A pod is gone."""
        for peers in self._member_of.pop(uid, set()):
            self._holdings.hold(peers, uid, frozenset())

    def _join(self, peers: Peers, pod: PodFact) -> None:
        elements = frozenset((rules.peers_set(peers, family(ip)), ip) for ip in pod.ips)
        self._holdings.hold(peers, pod.uid, elements)
        self._member_of.setdefault(pod.uid, set()).add(peers)

    def _candidates(self, pod: PodFact) -> Iterator[Peers]:
        for where in (pod.namespace, ""):
            for anchor in (None, *pod.labels.items()):
                yield from self._index.get((where, anchor), ())


def _anchors(peers: Peers) -> Iterator[_Anchor]:
    for anchor in peers.pods.anchors():
        yield peers.namespace, anchor


def _selects(peers: Peers, pod: PodFact, namespace: Mapping[str, str]) -> bool:
    if peers.namespaces is None:
        return peers.namespace == pod.namespace and peers.pods.matches(pod.labels)
    return peers.namespaces.matches(namespace) and peers.pods.matches(pod.labels)


class PortSets:
    """For each port name that some policy uses: the pods that have it, by the number they give it."""

    def __init__(self, table: TableState) -> None:
        self._table = table
        self._holdings = Holdings(table)
        self._users: Counter[PortName] = Counter()
        self._owners: dict[PortName, Counter[int]] = {}

    @property
    def numbers(self) -> Mapping[PortName, list[int]]:
        """The numbers of each name in use."""
        return {name: sorted(numbers) for name, numbers in self._owners.items()}

    def use(self, name: PortName, pods: Iterable[PodFact]) -> None:
        """One user more; `pods` are looked through for the first one."""
        self._users[name] += 1
        if self._users[name] == 1:
            self._owners[name] = Counter()
            for pod in pods:
                self._put(name, pod)

    def leave(self, name: PortName) -> None:
        """One user less; the sets go with the last one, whose rules must be gone."""
        self._users[name] -= 1
        if self._users[name]:
            return
        del self._users[name]
        self._holdings.release(name)
        for number in self._owners.pop(name):
            self._drop_sets(name, number)

    def put(self, pod: PodFact) -> set[PortName]:
        """A pod as it is now; the names whose numbers have changed."""
        return {name for name in self._users if self._put(name, pod)}

    def drop(self, pod: PodFact) -> set[PortName]:
        """A pod is gone; the names whose numbers have changed."""
        gone = PodFact(pod.uid, pod.namespace, pod.name, {})
        return {name for name in self._users if self._put(name, gone)}

    def _put(self, name: PortName, pod: PodFact) -> bool:
        """Whether the numbers of a name changed."""
        owners, before = self._owners[name], set(self._owners[name])
        new = {port[2] for port in pod.ports if port[:2] == name} if pod.ips else set()
        elements = frozenset((rules.port_set(*name, n, family(ip)), ip) for n in new for ip in pod.ips)
        held = self._holdings.of(name, pod.uid)
        if held == elements:
            return False
        old = {_number(one) for one, _ in held}
        for number in new - old:
            owners[number] += 1
            if owners[number] == 1:
                for version in rules.FAMILIES:
                    set_name = rules.port_set(*name, number, version)
                    self._table.put_set(set_name, rules.address_type(version))
        self._holdings.hold(name, pod.uid, elements)
        for number in old - new:
            owners[number] -= 1
            if not owners[number]:
                del owners[number]
                self._drop_sets(name, number)
        return set(owners) != before

    def _drop_sets(self, name: PortName, number: int) -> None:
        for version in rules.FAMILIES:
            self._table.drop_set(rules.port_set(*name, number, version))


def _number(set_name: str) -> int:
    return int(set_name.split("-")[-2])
