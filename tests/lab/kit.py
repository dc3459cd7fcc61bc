"""What the lab tests share: one namespace a test, small manifests, and waiting for facts.

Waiting here is the test's own: it asks the apiserver again until the fact is there or the time is up. The
limits are generous because machines are noisy; how fast the node is, is measured in tests/bench.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
WAIT_SECONDS = 60.0
BUSYBOX = "busybox:1.36"


class Cluster(Protocol):
    """What the tests need of a running lab (tests/lab/conftest.py makes it)."""

    def kubectl(self, *args: str, input: str = "", check: bool = True) -> str:
        """kubectl's standard output."""

    def kubectl_status(self, *args: str) -> tuple[int, str, str]:
        """kubectl's exit status, standard output and standard error."""

    def node(self, node: str, *argv: str, check: bool = True) -> str:
        """What a program prints, run in a node's namespaces."""

    def node_command(self, node: str, *argv: str) -> list[str]:
        """The command line that runs a program in a node's namespaces, for programs that are to go on."""

    def outside(self, *argv: str) -> str:
        """What a program prints, run beside the nodes: in the control plane's network namespace."""

    def pid_of(self, container_id: str, *, node: str) -> int | None:
        """The machine's PID of a container's first process, found in its cgroup; None when it has none."""

    def killed(self, node: str, *programs: str) -> AbstractContextManager[None]:
        """kill -9 these programs ("nodelet", "nodelet-cri"); at the end they run again and are ready."""

    def configured(self, node: str, **fields: object) -> AbstractContextManager[None]:
        """The agent of a node with these fields in its KubeletConfiguration; at the end as before."""

    def without_api(self) -> AbstractContextManager[None]:
        """kill -9 the API server; at the end it is back and answers."""

    def program(self, name: str) -> str:
        """Path of one of this project's programs, on any node."""


def until(what: str, fact: Callable[[], T | None], *, timeout: float = WAIT_SECONDS) -> T:
    """Ask until `fact` gives something true; fail naming what never came and what was there last."""
    end = time.monotonic() + timeout
    while True:
        last = fact()
        if last:
            return last
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout:g} s in vain for {what}; last seen: {last!r}")
        time.sleep(0.1)


@dataclass(frozen=True)
class Namespace:
    """A Kubernetes namespace of one test."""

    cluster: Cluster
    name: str

    def kubectl(self, *args: str, input: str = "", check: bool = True) -> str:
        return self.cluster.kubectl("-n", self.name, *args, input=input, check=check)

    def run(self, *args: str) -> tuple[int, str, str]:
        """kubectl's exit status, standard output and standard error."""
        return self.cluster.kubectl_status("-n", self.name, *args)

    def apply(self, *objects: dict[str, Any]) -> None:
        listing = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", input=json.dumps(listing))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        text = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else {}

    def pod(self, name: str) -> dict[str, Any]:
        return self.get("pod", name)

    def wait_pod(self, name: str, what: str, fact: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The pod once `fact(pod)` is true."""

        def look() -> dict[str, Any] | None:
            pod = self.pod(name)
            return pod if pod and fact(pod) else None

        try:
            return until(f"pod {name}: {what}", look)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{json.dumps(self.pod(name).get('status'), indent=1)}") from None

    def wait_running(self, name: str) -> dict[str, Any]:
        return self.wait_pod(name, "Running and Ready", is_ready)

    def wait_phase(self, name: str, phase: str) -> dict[str, Any]:
        return self.wait_pod(name, f"phase {phase}", lambda pod: pod["status"].get("phase") == phase)

    def wait_gone(self, name: str) -> None:
        until(f"pod {name} gone", lambda: not self.pod(name))

    def sh(self, pod: str, script: str, *, container: str | None = None, check: bool = True) -> str:
        """What a shell line prints in the pod."""
        where = ("-c", container) if container else ()
        return self.kubectl("exec", pod, *where, "--", "sh", "-c", script, check=check)

    def events(self, pod: str) -> list[dict[str, Any]]:
        text = self.kubectl("get", "events", "-o", "json", "--field-selector", f"involvedObject.name={pod}")
        items = json.loads(text)["items"]
        return sorted(items, key=lambda e: e.get("firstTimestamp") or e.get("eventTime") or "")

    def reasons(self, pod: str) -> set[str]:
        return {event["reason"] for event in self.events(pod)}


def is_ready(pod: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def container_status(pod: dict[str, Any], index: int = 0) -> dict[str, Any]:
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return statuses[index] if index < len(statuses) else {}


def waiting_reason(pod: dict[str, Any]) -> str:
    return str(container_status(pod).get("state", {}).get("waiting", {}).get("reason", ""))


def waiting_message(pod: dict[str, Any]) -> str:
    return str(container_status(pod).get("state", {}).get("waiting", {}).get("message", ""))


def container(script: str = "sleep 3600", *, name: str = "c", **fields: Any) -> dict[str, Any]:
    """A busybox container that runs a shell line, and ends at once on TERM while it sleeps."""
    if script.startswith("sleep"):
        script = f"trap 'exit 0' TERM; {script} & wait"
    return {"name": name, "image": BUSYBOX, "command": ["sh", "-c", script], **fields}


def pod(
    name: str,
    *containers: dict[str, Any],
    node: str | None = None,
    labels: dict[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A pod manifest; `node` pins it without the scheduler's choice but through its doors."""
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {"app": name}},
        "spec": {"containers": list(containers) or [container()], **spec},
    }


def service(name: str, app: str, *, port: int = 80, target: int | str = 8080, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": app}, "ports": [{"port": port, "targetPort": target}], **spec},
    }


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def secret(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def http_server(answer: str, *, port: int = 8080) -> str:
    """A shell line: serve one fixed answer over HTTP (busybox httpd)."""
    return f"mkdir -p /www; echo '{answer}' > /www/index.html; exec httpd -f -p {port} -h /www"
