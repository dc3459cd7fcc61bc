"""Rows A13, B16: a node that is set up otherwise - pods of a URL, small logs, crun beside its own runtime."""

import json
import os
import shutil
import subprocess
import uuid
from contextlib import ExitStack
from dataclasses import replace

import pytest
from kit import Namespace, config_map, container, container_status, pod, until

from deploy.labkit.services import ensure_service

PORT = 18090
ROTATIONS = 5
COUNTER = (
    "i=0; until [ -e /stop ]; do i=$((i+1)); echo line $i of a log that is rotated; usleep 500; done; exit 0"
)


@pytest.fixture(scope="module", autouse=True)
def n2(cluster, lab):
    """n2, set up otherwise: pods of a URL that a pod on n1 may serve, small logs, a second runtime."""
    address = cluster.node("n1", "hostname", "-i").strip()
    service, machine = lab.service("n2", "nodelet-cri"), lab.machine("n2")
    crun = shutil.which("crun")
    with ExitStack() as stack:
        if crun:
            two = replace(service, argv=(*service.argv, f"--runtime-handler=crun={crun}"))
            ensure_service(lab.layout, lab.records, machine, two)
            stack.callback(lab.start, "n2", "nodelet-cri")
        fields = {
            "staticPodURL": f"http://{address}:{PORT}/pods.json",
            "httpCheckFrequency": "1s",
            "containerLogMaxSize": "16Ki",
            "containerLogMaxFiles": 100,
            "containerLogMonitorInterval": "3s",
            "podPidsLimit": 77,
        }
        stack.enter_context(cluster.configured("n2", **fields))
        yield "n2"


@pytest.fixture(scope="module", autouse=True)
def counter(n2, cluster):
    """A pod that writes line after line while the other tests run."""
    space = Namespace(cluster=cluster, name=f"counter-{uuid.uuid4().hex[:5]}")
    cluster.kubectl("create", "namespace", space.name)
    until("its service account", lambda: space.kubectl("get", "sa", "-o", "name"))
    space.apply(pod("p", container(COUNTER), node=n2, restartPolicy="Never"))
    space.wait_running("p")
    yield space
    cluster.kubectl("delete", "namespace", space.name, "--wait=false")


@pytest.fixture(scope="module", autouse=True)
def follow(counter, lab):
    """kubectl logs -f of that pod, from its first line on: answers all it has printed once the pod ends."""
    argv, env = lab.kubectl_command(["-n", counter.name, "logs", "-f", "p"])
    path = lab.layout.state / f"{counter.name}.log"
    with path.open("w") as file, subprocess.Popen(argv, stdout=file, env={**os.environ, **env}) as process:
        try:

            def printed() -> list[str]:
                assert process.wait(60) == 0
                return path.read_text().splitlines()

            yield printed
        finally:
            process.kill()
            path.unlink()


def test_a13_pods_of_a_url_follow_what_it_serves(ns, n2):
    far = pod("far", container(), terminationGracePeriodSeconds=1)
    far["metadata"]["namespace"] = ns.name
    listing = {"apiVersion": "v1", "kind": "PodList", "items": [far]}
    serve = container(f"exec httpd -f -p {PORT} -h /m", volumeMounts=[{"name": "m", "mountPath": "/m"}])
    volumes = [{"name": "m", "configMap": {"name": "m"}}]
    ns.apply(
        config_map("m", **{"pods.json": json.dumps(listing)}),
        pod("server", serve, node="n1", hostNetwork=True, volumes=volumes),
    )
    found = ns.wait_running(f"far-{n2}")
    assert found["metadata"]["annotations"]["kubernetes.io/config.source"] == "http"
    ns.apply(config_map("m", **{"pods.json": json.dumps(listing | {"items": []})}))
    ns.wait_gone(f"far-{n2}")


def test_a_runtime_class_chooses_another_runtime(ns, n2):
    if not shutil.which("crun"):
        pytest.skip("crun is not installed: apt install crun")
    name = f"class-{ns.name}"
    made = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}}
    made |= {"handler": "crun", "overhead": {"podFixed": {"cpu": "10m", "memory": "8Mi"}}}

    def handlers():
        node = json.loads(ns.cluster.kubectl("get", "node", n2, "-o", "json"))
        return [handler["name"] for handler in node["status"].get("runtimeHandlers", ())]

    until("the handler in the Node", lambda: "crun" in handlers())
    ns.apply(made, pod("p", container(), node=n2, runtimeClassName=name))
    try:
        found = ns.wait_running("p")
        assert found["spec"]["overhead"] == {"cpu": "10m", "memory": "8Mi"}
        assert ns.sh("p", "echo from inside") == "from inside\n"
        plain = container_status(found)["containerID"].rpartition("/")[2]
        assert ns.cluster.node(
            n2, "find", "/run/nodelet/cri", "-path", f"*{plain}/oci/{plain}"
        )  # crun's own state
        ns.kubectl("delete", "pod", "p")
    finally:
        ns.kubectl("delete", "runtimeclass", name)


def test_a_pod_has_so_many_processes_and_no_more(ns, n2):
    ns.apply(pod("p", container(), node=n2))
    ns.wait_running("p")
    forks = ns.sh("p", "for i in $(seq 100); do sleep 30 & done 2>&1; wait", check=False)
    assert "can't fork" in forks and "temporarily unavailable" in forks


def test_b16_a_reader_misses_no_line_over_rotations(counter, follow, n2):
    folder = f"/var/log/pods/{counter.name}_p_{counter.pod('p')['metadata']['uid']}/c"

    def rotated():
        return [name for name in counter.cluster.node(n2, "ls", folder).split() if name != "0.log"]

    until(f"{ROTATIONS} rotations", lambda: len(rotated()) >= ROTATIONS)
    assert any(name.endswith(".gz") for name in rotated())
    counter.sh("p", "touch /stop")
    counter.wait_phase("p", "Succeeded")
    lines = follow()
    assert lines == [f"line {i + 1} of a log that is rotated" for i in range(len(lines))]
    last = counter.kubectl("logs", "p", "--tail=1").strip()
    assert last == lines[-1]
