"""What the overlay has done, and how full this node's ranges are, for /metrics."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from agent.server.exposition import Family, Histogram, Sample, counter, doubling, gauge
from cni import usage
from host.rtnl import IPNetwork


class OverlayMetrics:
    """Counts of one overlay component.

    Attributes:
        peers: nodes whose pods are reached.
        problems: what kept the last round from being complete, one for each Node or entry.
    """

    def __init__(self) -> None:
        self.peers = self.problems = 0
        self._rounds = Histogram(doubling(0.0005, 14))
        self._changed = {"nodes": 0, "repair": 0}
        self._rules = 0

    def changed(self, entries: int, *, repair: bool) -> None:
        """Entries were written: because Nodes changed, or because the kernel had lost them."""
        self._changed["repair" if repair else "nodes"] += entries

    def rules_written(self) -> None:
        """Packet filter rules were missing or changed."""
        self._rules += 1

    def round_took(self, seconds: float) -> None:
        """Everything was compared, and mended."""
        self._rounds.observe(seconds)

    def families(self, state: Path, ranges: Iterable[IPNetwork]) -> tuple[Family, ...]:
        """All of it, and the leases of these ranges in the plugin's state folder."""
        name = "nodelet_overlay"
        changes = tuple(Sample(count, {"cause": cause}) for cause, count in self._changed.items())
        what = "Neighbours, FDB entries and routes written"
        found = usage.read(state, ranges)
        leased = tuple(Sample(one.leased, {"range": str(one.subnet)}) for one in found)
        free = tuple(Sample(one.free, {"range": str(one.subnet)}) for one in found)
        return (
            gauge(f"{name}_peers", "Nodes whose pods are reached", self.peers),
            gauge(f"{name}_problems", "Nodes left out and entries refused", self.problems),
            Family(f"{name}_sync_duration_seconds", "histogram", "Time of a round", self._rounds.samples()),
            Family(f"{name}_changes_total", "counter", what, changes),
            counter(f"{name}_rule_repairs_total", "Times packet filter rules were written", self._rules),
            Family("nodelet_cni_leases", "gauge", "Addresses of this node's pods", leased),
            Family("nodelet_cni_addresses_free", "gauge", "Addresses left", free),
        )
