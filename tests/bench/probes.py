"""What probes cost, and how soon a readiness probe that fails takes a pod out of its service.

The cost is that of the agent's own code: hundreds of probes against a server of another process. The delay is
seen from outside: from the failing answer, whose moment the container notes, until the EndpointSlice in the
API says not ready. The two nodes take turns.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.labkit.api import Api, ApiError, wait_for
from deploy.labkit.errors import LabError
from deploy.labkit.lab import Lab
from tests.bench.pods import IMAGE
from tests.bench.probe_load import KINDS
from tests.bench.report import Figure, percentile

NAMESPACE = "bench-probes"
BASE = f"/api/v1/namespaces/{NAMESPACE}"
SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
COUNT, PERIOD, SECONDS = 500, 5, 20
ROUNDS = 10
CHECKOUT = Path(__file__).parents[2]
Json = dict[str, Any]
_SCRIPT = """
mkdir -p /www/cgi-bin
cat > /www/cgi-bin/ready <<'END'
#!/bin/sh
read now rest < /proc/uptime
if [ -e /bad ]; then echo "Status: 500 bad"; echo $now >> /failed; fi
echo; echo hello
END
chmod +x /www/cgi-bin/ready
exec httpd -f -p 8080 -h /www
"""


def cost(kind: str) -> float:
    """Percent of a core that `COUNT` probes every `PERIOD` seconds use. Raises LabError."""
    argv = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    argv += [sys.executable, "-m", "tests.bench.probe_load", kind, str(COUNT), str(PERIOD), str(SECONDS)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=CHECKOUT, check=False)
    if done.returncode:
        raise LabError(f"probes of kind {kind}: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout)


class Readiness:
    """When each service's endpoint last became ready, or not ready, in the API (CLOCK_BOOTTIME)."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._changed = threading.Condition()
        self._known: dict[str, tuple[bool, float]] = {}

    def start(self) -> None:
        """Watch from now on."""
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        for event in self._api.watch(SLICES, timeout=3600):
            found = event["object"]
            states = [e["conditions"].get("ready", False) for e in found.get("endpoints") or ()]
            ready = any(states)
            name = found["metadata"]["labels"]["kubernetes.io/service-name"]
            with self._changed:
                if self._known.get(name, (None, 0.0))[0] != ready:
                    self._known[name] = (ready, time.clock_gettime(time.CLOCK_BOOTTIME))
                    self._changed.notify_all()

    def wait(self, name: str, ready: bool, *, seconds: float = 60) -> float:
        """When it became so. Raises LabError when it does not."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._known.get(name, (None,))[0] is ready, seconds):
                raise LabError(
                    f"endpoint of {name} was not {'ready' if ready else 'unready'} in {seconds:.0f} s"
                )
            return self._known[name][1]


def manifest(node: str) -> Json:
    """A pod whose readiness is a question of a file, asked for every second."""
    probe = {"httpGet": {"path": "/cgi-bin/ready", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1}
    container = {
        "name": "c",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", _SCRIPT],
        "readinessProbe": probe,
    }
    spec = {"nodeName": node, "containers": [container], "terminationGracePeriodSeconds": 1}
    return {"metadata": {"name": node, "labels": {"app": node}}, "spec": spec}


def delays(lab: Lab, readiness: Readiness, api: Api, *, nodes: tuple[str, ...]) -> dict[str, list[float]]:
    """Seconds from the failing answer until the EndpointSlice says so, for each node."""
    for node in nodes:
        service = {"selector": {"app": node}, "ports": [{"port": 80, "targetPort": 8080}]}
        api.request("POST", f"{BASE}/services", {"metadata": {"name": node}, "spec": service})
        api.request("POST", f"{BASE}/pods", manifest(node))
    found: dict[str, list[float]] = {node: [] for node in nodes}
    for _ in range(ROUNDS):
        for node in nodes:
            readiness.wait(node, True)
            _in_pod(lab, node, "rm -f /failed; touch /bad")
            unready = readiness.wait(node, False)
            failed = float(_in_pod(lab, node, "head -1 /failed; rm /bad"))
            found[node].append(unready - failed)
    return found


def _in_pod(lab: Lab, pod: str, script: str) -> str:
    return lab.kubectl("-n", NAMESPACE, "exec", pod, "--", "sh", "-c", script)


def run(lab: Lab, *, ours: str, stock: str, say: Callable[[str], None]) -> list[Figure]:
    """The benchmark `probes`."""
    api = lab.api(keep=True)
    figures = []
    for kind in KINDS:
        say(f"{COUNT} {kind} probes every {PERIOD} s for {SECONDS} s")
        what = f"{COUNT} probes ({kind}) every {PERIOD} s, of a core"
        figures.append(Figure(what=what, ours=cost(kind), stock=None, unit="%"))
    try:
        api.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    except ApiError as exc:
        if exc.code != 409:
            raise
    wait_for("the namespace's account", lambda: bool(api.get(f"{BASE}/serviceaccounts/default")), seconds=30)
    readiness = Readiness(lab.api())
    readiness.start()
    say(f"{ROUNDS} failing readiness probes on each node")
    found = delays(lab, readiness, api, nodes=(ours, stock))
    api.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}")
    api.close()
    for label, share in (("p50", 0.5), ("max", 1.0)):
        values = [1000 * percentile(found[node], share) for node in (ours, stock)]
        what = f"failing answer to unready in the EndpointSlice, {label}"
        figures.append(Figure(what=what, ours=values[0], stock=values[1], unit="ms"))
    return figures
