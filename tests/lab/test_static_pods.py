"""Row A13: pods of a folder. Those of a URL are in test_settings.py."""

import json

import pytest
from kit import container, container_status, pod, until

FOLDER = "/etc/kubernetes/manifests"


def put(ns, file, text, *, node="n1"):
    """Write a manifest as an editor would, so that no half of it is ever seen."""
    script = f'printf %s "$1" > {FOLDER}/.new && mv {FOLDER}/.new {FOLDER}/{file}'
    ns.cluster.node(node, "sh", "-c", script, "sh", text)


def manifest(ns, name, script="sleep 3600", **spec):
    made = pod(name, container(script), terminationGracePeriodSeconds=1, **spec)
    made["metadata"]["namespace"] = ns.name
    return json.dumps(made)


@pytest.fixture
def folder(ns):
    """Manifests of the test's own in n1's folder, gone at its end."""
    names = [f"{ns.name}-{part}.yaml" for part in ("web", "broken")]
    yield names
    ns.cluster.node("n1", "rm", "-f", *(f"{FOLDER}/{name}" for name in names))


def test_a13_a_file_makes_replaces_and_ends_its_pod(ns, folder):
    web, broken = folder
    put(ns, broken, "apiVersion: v1\nkind: Pod\nmetadata: {name: x\nspec: 3\n")
    put(ns, web, manifest(ns, "web"))
    first = ns.wait_running("web-n1")
    assert first["metadata"]["annotations"]["kubernetes.io/config.source"] == "file"
    assert first["metadata"]["ownerReferences"][0]["kind"] == "Node"
    process = container_status(first)["containerID"]
    # What does not parse is named with its line, and the others run.
    log = (ns.cluster.lab.layout.log("n1", "nodelet")).read_text()
    assert any(f"{FOLDER}/{broken}: not YAML: line 4" in line for line in log.splitlines())
    # Deleting the mirror is no way to end the pod: a new one shows the same container.
    ns.kubectl("delete", "pod", "web-n1", "--grace-period=0", "--force")
    again = ns.wait_running("web-n1")
    assert container_status(again)["containerID"] == process
    put(ns, web, manifest(ns, "web").replace("busybox:1.36", "busybox:1.28"))
    edited = ns.wait_pod(
        "web-n1",
        "its other image running",
        lambda p: p["spec"]["containers"][0]["image"] == "busybox:1.28" and "running" in state(p),
    )
    assert container_status(edited)["containerID"] != process
    until("the old container's process gone", lambda: ns.cluster.pid_of(process, node="n1") is None)
    ns.cluster.node("n1", "rm", f"{FOLDER}/{web}")
    ns.wait_gone("web-n1")


def state(found):
    return container_status(found).get("state", {})
