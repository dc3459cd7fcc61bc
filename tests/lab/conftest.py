"""The lab ring's cluster: a lab of its own for the whole run, a namespace a test, a leak check at the end.

Set NODELET_LAB_NAME to use (and keep) a lab that is up already: handy while writing tests.
"""

import os
import re
import subprocess
import uuid
from contextlib import contextmanager

import pytest
import yaml
from kit import Namespace, until
from netpol import Matrix

from deploy.labkit import cgroups, leaks, nodes
from deploy.labkit.lab import Lab
from deploy.labkit.layout import CONTROL, SWITCH, Layout
from deploy.labkit.progress import Progress


class LabCluster:
    """`kit.Cluster` on a lab of this machine."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def kubectl(self, *args: str, input: str = "", check: bool = True) -> str:
        return self.lab.kubectl(*args, input=input, check=check)

    def kubectl_status(self, *args: str) -> tuple[int, str, str]:
        argv, env = self.lab.kubectl_command(args)
        done = subprocess.run(
            argv, env={**os.environ, **env}, capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def node(self, node: str, *argv: str, check: bool = True) -> str:
        return self.lab.shell(node, *argv, check=check)

    def node_command(self, node: str, *argv: str) -> list[str]:
        return [*self.lab.machine(node).enter(), *argv]

    def outside(self, *argv: str) -> str:
        return self.lab.shell(CONTROL, *argv)

    def stranger(self, *argv: str) -> str:
        """What a program prints on a machine of the node network that is no node."""
        return self.lab.shell(SWITCH, *argv)

    def pid_of(self, container_id: str, *, node: str) -> int | None:
        return cgroups.first_process(self.lab.layout.node_cgroup(node), container_id)

    @contextmanager
    def killed(self, node: str, *programs: str):
        for program in programs:
            self.lab.kill(node, program)
        try:
            yield
        finally:
            for program in programs:
                self.lab.start(node, program)
            until(f"{node} at work again", lambda: self._healthy(node))

    @contextmanager
    def configured(self, node: str, **fields: object):
        """The agent of a node with these fields in its KubeletConfiguration; at the end as before."""
        path = self.lab.layout.machine(node) / "var/lib/kubelet/config.yaml"
        before = path.read_text()
        try:
            with self.killed(node, "nodelet"):
                path.write_text(yaml.safe_dump(yaml.safe_load(before) | fields))
            yield
        finally:
            with self.killed(node, "nodelet"):
                path.write_text(before)

    @contextmanager
    def without_api(self):
        """kill -9 the API server; at the end it is back and answers, and controllers have come back to it."""
        self.lab.kill(CONTROL, "kube-apiserver")
        try:
            yield
        finally:
            self.lab.start(CONTROL, "kube-apiserver")
            until("the API server", lambda: self.kubectl("get", "--raw", "/readyz", check=False) == "ok")
            self._await_controllers()

    def _await_controllers(self):
        """After several outages they wait longer than a test does before they watch again."""
        name = f"outage-{uuid.uuid4().hex[:8]}"
        self.kubectl("create", "namespace", name)
        account = ("get", "serviceaccount", "default", f"--namespace={name}", "--output=name")
        until("the controllers", lambda: self.kubectl(*account, check=False), timeout=180)
        self.kubectl("delete", "namespace", name, "--wait=false")

    def program(self, name: str) -> str:
        """Path of one of this project's programs, on any node."""
        return str(nodes.program(name))

    def _healthy(self, node: str) -> bool:
        self.lab.check_running(nodes.find(self.lab.layout, node))
        probe = ["busybox", "wget", "-q", "-O-", "http://127.0.0.1:10248/healthz"]
        return self.lab.shell(node, *probe, check=False).strip() == "ok"


@pytest.fixture(scope="session")
def lab():
    """A lab that is up: of its own, or the one that NODELET_LAB_NAME names."""
    named = os.environ.get("NODELET_LAB_NAME")
    found = Lab(Layout(name=named or "test"), Progress())
    if named:
        yield found
        return
    found.down()
    before = leaks.take(found.layout)
    try:
        found.up(count=2)
        yield found
    finally:
        found.down()
    assert leaks.difference(before, leaks.take(found.layout)) == []


@pytest.fixture(scope="session")
def cluster(lab):
    return LabCluster(lab)


@pytest.fixture(scope="module")
def net(cluster):
    """The nine pods of the network policies' tests, for one file."""
    made = Matrix(cluster)
    try:
        made.make()
        yield made
    finally:
        made.close()


@pytest.fixture
def ns(cluster, request):
    """A namespace of the test's own, with everything in it gone when the test ends."""
    short = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())[:40].strip("-")
    name = f"{short}-{uuid.uuid4().hex[:5]}"
    cluster.kubectl("create", "namespace", name)
    until("its service account", lambda: cluster.kubectl("-n", name, "get", "sa", "-o", "name"))
    yield Namespace(cluster=cluster, name=name)
    cluster.kubectl("delete", "pods", "--all", "-n", name, "--grace-period=1", "--wait=false")
    cluster.kubectl("delete", "namespace", name, "--wait=false")
