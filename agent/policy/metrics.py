"""What the policy component has done and holds, for /metrics."""

from __future__ import annotations

from agent.policy.picture import Picture
from agent.server.exposition import Family, Histogram, counter, doubling, gauge

_BOUNDS = doubling(0.001, 15)


class PolicyMetrics:
    """Counts of one policy component."""

    def __init__(self) -> None:
        self._whole = Histogram(_BOUNDS, {"kind": "whole"})
        self._changes = Histogram(_BOUNDS, {"kind": "changes"})
        self._failures = self._drifts = 0

    def written(self, seconds: float, *, whole: bool) -> None:
        """The table was written, as a whole or only what changed."""
        (self._whole if whole else self._changes).observe(seconds)

    def failed(self) -> None:
        """The table could not be written."""
        self._failures += 1

    def drifted(self) -> None:
        """The table was not as it had been written."""
        self._drifts += 1

    def families(self, picture: Picture, *, enforced: bool, dropped: int) -> tuple[Family, ...]:
        """All of it, what the picture holds, and what the kernel has counted."""
        duration = (*self._whole.samples(), *self._changes.samples())
        name = "nodelet_policy"
        return (
            gauge(f"{name}_enforced", "1 when network policies are enforced on this node", enforced),
            gauge(f"{name}_policies", "Network policies of the cluster", len(picture.policies)),
            gauge(f"{name}_isolated_pods", "Pods of this node that a policy isolates", picture.isolated),
            gauge(f"{name}_rules", "Rules in the table", picture.table.rules),
            Family(f"{name}_sync_duration_seconds", "histogram", "Time to write the table", duration),
            counter(f"{name}_sync_failures_total", "Writes of the table that failed", self._failures),
            counter(f"{name}_dropped_packets_total", "Packets that no policy allows", dropped),
            counter(f"{name}_drifts_total", "Times somebody else had changed the table", self._drifts),
        )
