"""What the service proxy has done, under kube-proxy's names, so that its dashboards and alerts stay useful.

Source: k8s.io/kubernetes/pkg/proxy/metrics (v1.37). Not shown: what has no meaning here (its conntrack
reconciler's, localhost node ports'), and rules in each table, which would be counted at every scrape.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from agent.server.exposition import Family, Histogram, counter, doubling, gauge
from agent.services.iptables import Synced

if TYPE_CHECKING:
    from agent.api.structs import EndpointSlice

_TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"
_FAMILY = {"ip_family": "IPv4"}
_SYNC = doubling(0.001, 15)
_PROGRAMMING = (0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))


class ProxyMetrics:
    """Counts of one proxy.

    Args:
        since: Unix time; changes triggered before are not this proxy's to measure.
    """

    def __init__(self, *, since: float) -> None:
        self._since = since
        self._all = Histogram(_SYNC, _FAMILY)
        self._full, self._partial = Histogram(_SYNC, _FAMILY), Histogram(_SYNC, _FAMILY)
        self._programming = Histogram(_PROGRAMMING, _FAMILY)
        self._last = self._queued = 0.0
        self._failures = 0
        self._service_changes = self._endpoint_changes = 0
        self._pending_services = self._pending_endpoints = 0
        self._triggers: list[float] = []

    def service_changed(self, now: float) -> None:
        """A Service is to be looked at again."""
        self._service_changes += 1
        self._pending_services += 1
        self._queued = now

    def endpoints_changed(self, one: EndpointSlice, now: float) -> None:
        """An EndpointSlice is to be looked at again."""
        self._endpoint_changes += 1
        self._pending_endpoints += 1
        self._queued = now
        at = _trigger_time(one)
        if at is not None and at > self._since:
            self._triggers.append(at)

    def started(self) -> list[float]:
        """A sync takes up all changes so far; gives when they were triggered, for `synced` or `failed`."""
        self._pending_services = self._pending_endpoints = 0
        triggers, self._triggers = self._triggers, []
        return triggers

    def synced(self, done: Synced, triggers: Iterable[float], now: float) -> None:
        """A sync has ended well."""
        for histogram in (self._all, self._full if done.full else self._partial):
            histogram.observe(done.seconds)
        for at in triggers:
            self._programming.observe(max(0.0, now - at))
        self._last = now

    def failed(self, triggers: Iterable[float]) -> None:
        """A sync has failed; what it took up is in the next one."""
        self._failures += 1
        self._triggers = [*triggers, *self._triggers]

    def families(self) -> tuple[Family, ...]:
        """For /metrics."""
        sync = "kubeproxy_sync_proxy_rules"

        def histogram(name: str, text: str, what: Histogram) -> Family:
            return Family(f"kubeproxy_{name}_duration_seconds", "histogram", text, what.samples())

        services, endpoints = self._pending_services, self._pending_endpoints
        return (
            histogram("sync_proxy_rules", "SyncProxyRules latency in seconds", self._all),
            histogram("sync_full_proxy_rules", "Latency of full resyncs in seconds", self._full),
            histogram("sync_partial_proxy_rules", "Latency of partial syncs in seconds", self._partial),
            histogram("network_programming", "From a change's trigger to its rules", self._programming),
            gauge(f"{sync}_last_timestamp_seconds", "Last successful sync", self._last, **_FAMILY),
            gauge(f"{sync}_last_queued_timestamp_seconds", "Last change queued", self._queued, **_FAMILY),
            gauge(f"{sync}_service_changes_pending", "Pending Service changes", services),
            counter(f"{sync}_service_changes_total", "Service changes seen", self._service_changes),
            gauge(f"{sync}_endpoint_changes_pending", "Pending EndpointSlice changes", endpoints),
            counter(f"{sync}_endpoint_changes_total", "EndpointSlice changes seen", self._endpoint_changes),
            counter(
                f"{sync}_iptables_restore_failures_total", "Failed syncs of rules", self._failures, **_FAMILY
            ),
        )


def _trigger_time(one: EndpointSlice) -> float | None:
    """When the change behind a slice was made, as the endpoint slice controller tells it."""
    text = one.metadata.annotations.get(_TRIGGER, "")
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None
