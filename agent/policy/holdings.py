"""Which set elements are there because of whom, so that one pod's change touches only its own.

owner (a peer selector, a port name, …) → pod uid → {(set, element)}
"""

from __future__ import annotations

from collections.abc import Hashable

from host.rules.nft import TableState

Element = tuple[str, str]
"""(set, element) of the table."""


class Holdings:
    """The elements each owner holds for each pod, kept in step with a table."""

    def __init__(self, table: TableState) -> None:
        self._table = table
        self._held: dict[Hashable, dict[str, frozenset[Element]]] = {}

    def hold(self, owner: Hashable, uid: str, elements: frozenset[Element]) -> None:
        """Let the owner hold exactly these elements for this pod."""
        pods = self._held.get(owner, {})
        before = pods.get(uid, frozenset())
        for name, element in before - elements:
            self._table.remove(name, element)
        for name, element in elements - before:
            self._table.add(name, element)
        if elements:
            self._held.setdefault(owner, pods)[uid] = elements
        elif before:
            del pods[uid]
            if not pods:
                del self._held[owner]

    def of(self, owner: Hashable, uid: str) -> frozenset[Element]:
        """What the owner holds for a pod."""
        return self._held.get(owner, {}).get(uid, frozenset())

    def release(self, owner: Hashable) -> None:
        """Let the owner hold nothing any more."""
        for uid in list(self._held.get(owner, ())):
            self.hold(owner, uid, frozenset())
