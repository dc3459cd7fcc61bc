"""How long pods take: created until Running, deleted until gone; one by one and many at once.

Seen from outside, by a watcher of the API, as a user sees it; the image is on the node already and the pod
names its node, so neither the registry nor the scheduler is part of the figure. The two nodes take turns, so
that whatever else the machine does hits both alike.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deploy.labkit.api import Api, ApiError, wait_for
from deploy.labkit.errors import LabError
from deploy.labkit.lab import Lab
from tests.bench.report import Figure, percentile

NAMESPACE = "bench-pods"
IMAGE = "docker.io/library/busybox:latest"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
ONE_BY_ONE = 20
AT_ONCE = 30
Json = dict[str, Any]


def manifest(name: str, node: str) -> Json:
    """A pod that runs until TERM and then ends at once."""
    return {
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "containers": [
                {
                    "name": "c",
                    "image": IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", "trap 'exit 0' TERM; sleep 3600 & wait"],
                }
            ],
        },
    }


class Watcher:
    """The time each pod was first seen Running and first seen gone.

    Args:
        api: a client of its own.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._changed = threading.Condition()
        self._running: dict[str, float] = {}
        self._gone: dict[str, float] = {}
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        """Watch from now on."""
        self._thread.start()
        if not self._started.wait(10):
            raise LabError("the watch on the benchmark's pods did not start")

    def _follow(self) -> None:
        events = self._api.watch(PODS, timeout=3600)
        self._started.set()
        for event in events:
            now = time.monotonic()
            pod = event["object"]
            name = pod["metadata"]["name"]
            with self._changed:
                if event["type"] == "DELETED":
                    self._gone.setdefault(name, now)
                elif pod.get("status", {}).get("phase") == "Running":
                    self._running.setdefault(name, now)
                self._changed.notify_all()

    def running(self, name: str, seconds: float = 120) -> float:
        """When it was Running."""
        return self._wait(self._running, name, "Running", seconds)

    def gone(self, name: str, seconds: float = 120) -> float:
        """When it was gone."""
        return self._wait(self._gone, name, "gone", seconds)

    def _wait(self, times: dict[str, float], name: str, what: str, seconds: float) -> float:
        with self._changed:
            if not self._changed.wait_for(lambda: name in times, seconds):
                raise LabError(f"pod {name} was not {what} after {seconds:.0f} s")
            return times[name]


class PodBench:
    """One run over both nodes."""

    def __init__(self, lab: Lab, *, ours: str, stock: str, say: Callable[[str], None]) -> None:
        self._api = lab.api(keep=True)
        self._watcher = Watcher(lab.api())
        self._nodes = (ours, stock)
        self._say = say

    def run(self) -> list[Figure]:
        """All figures. Raises LabError when a pod does not come or go."""
        with self.namespace():
            for node in self._nodes:
                self._cycle(f"warm-up-{node}", node)
            self._say(f"one by one, {ONE_BY_ONE} pods on each node")
            single: dict[str, list[tuple[float, float]]] = {node: [] for node in self._nodes}
            for number in range(ONE_BY_ONE):
                for node in self._nodes:
                    single[node].append(self._cycle(f"single-{number}-{node}", node))
            self._say(f"{AT_ONCE} pods at once on each node")
            many = {node: (self.fill(node, AT_ONCE), self.empty(node, AT_ONCE)) for node in self._nodes}
        return [*self._single(single), *self._many(many)]

    @contextmanager
    def namespace(self) -> Iterator[None]:
        """With a namespace for the pods, and watching them."""
        self._make_namespace()
        self._watcher.start()
        yield
        self._api.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}")
        self._api.close()

    def _make_namespace(self) -> None:
        try:
            self._api.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        except ApiError as exc:
            if exc.code != 409:
                raise
        account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
        wait_for("the namespace's account", lambda: bool(self._api.get(account)), seconds=30)

    def _create(self, name: str, node: str) -> float:
        began = time.monotonic()
        self._api.request("POST", PODS, manifest(name, node))
        return began

    def _delete(self, name: str) -> float:
        began = time.monotonic()
        self._api.request("DELETE", f"{PODS}/{name}")
        return began

    def _cycle(self, name: str, node: str) -> tuple[float, float]:
        """Seconds until Running, seconds until gone."""
        began = self._create(name, node)
        start = self._watcher.running(name) - began
        began = self._delete(name)
        return start, self._watcher.gone(name) - began

    def fill(self, node: str, count: int) -> float:
        """Make so many pods at once; seconds until all were Running."""
        names = _names(node, count)
        began = min(self._create(name, node) for name in names)
        return max(self._watcher.running(name) for name in names) - began

    def empty(self, node: str, count: int) -> float:
        """Delete what `fill` has made; seconds until all were gone."""
        names = _names(node, count)
        self._api.close()  # the server has, where it was idle for 90 s
        began = min(self._delete(name) for name in names)
        return max(self._watcher.gone(name) for name in names) - began

    def _single(self, times: dict[str, list[tuple[float, float]]]) -> list[Figure]:
        ours, stock = (times[node] for node in self._nodes)
        return [
            Figure(
                what=f"{what}, one by one, {label}",
                ours=1000 * percentile([pair[index] for pair in ours], share),
                stock=1000 * percentile([pair[index] for pair in stock], share),
                unit="ms",
            )
            for index, what in enumerate(("pod created to Running", "pod deleted to gone"))
            for label, share in (("p50", 0.5), ("p95", 0.95))
        ]

    def _many(self, times: dict[str, tuple[float, float]]) -> list[Figure]:
        ours, stock = (times[node] for node in self._nodes)
        return [
            Figure(what=f"{AT_ONCE} pods at once, all {what}", ours=ours[index], stock=stock[index], unit="s")
            for index, what in enumerate(("Running", "gone"))
        ]


def _names(node: str, count: int) -> list[str]:
    return [f"burst-{number}-{node}" for number in range(count)]


def run(lab: Lab, *, ours: str, stock: str, say: Callable[[str], None]) -> list[Figure]:
    """The benchmark `pods`."""
    return PodBench(lab, ours=ours, stock=stock, say=say).run()
