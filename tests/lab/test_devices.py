"""Row B29: devices of a plugin, from its registration to the pod that opens one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kit import container, container_status, pod, until

ROOT = Path(__file__).parents[2]
NODE = "n1"
RESOURCE = "example.com/null"


def figures(cluster):
    """(capacity, allocatable) of the resource, as the API has them."""
    status = json.loads(cluster.kubectl("get", "node", NODE, "-o", "json"))["status"]
    return status["capacity"].get(RESOURCE), status["allocatable"].get(RESOURCE)


@pytest.fixture
def plugin(cluster):
    """The process of a plugin with two devices, at work on n1. It prints a line whenever it registers."""
    script = ROOT / "tests/unit/device_plugin.py"
    folder = "/var/lib/kubelet/device-plugins"
    devices = ("one=/dev/null", "two=/dev/zero")
    with subprocess.Popen(
        cluster.node_command(NODE, sys.executable, str(script), folder, RESOURCE, *devices),
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout.readline() == b"registered\n"
            until("its devices on the Node", lambda: figures(cluster) == ("2", "2"))
            yield process
        finally:
            process.terminate()
            process.wait(30)


def asking(name, **spec):
    return pod(
        name, container(resources={"limits": {RESOURCE: "1"}}), terminationGracePeriodSeconds=1, **spec
    )


def device_of(ns, name):
    """Which device a pod has, seen from inside."""
    seen = ns.sh(
        name,
        "ls /dev/ | grep ^sample-; echo $SAMPLE_DEVICES; echo x > /dev/sample-$SAMPLE_DEVICES; ls -d /sample",
    )
    node, variable, mount = seen.split()
    assert (node, mount) == (f"sample-{variable}", "/sample")
    return variable


def test_b29_pods_get_devices_and_keep_them(ns, cluster, plugin):
    assert RESOURCE in cluster.kubectl("describe", "node", NODE)
    ns.apply(asking("first"), asking("second"))
    kept = container_status(ns.wait_running("first"))["containerID"]
    ns.wait_running("second")
    devices = {name: device_of(ns, name) for name in ("first", "second")}
    assert set(devices.values()) == {"one", "two"}

    # There are two: the scheduler lets a third pod wait, and the node refuses one that comes past it.
    ns.apply(asking("third"), asking("past", nodeName=NODE))
    refused = ns.wait_phase("past", "Failed")
    assert refused["status"]["reason"] == f"OutOf{RESOURCE}"
    third = ns.wait_pod("third", "unschedulable", lambda p: p["status"].get("conditions"))
    assert f"Insufficient {RESOURCE}" in third["status"]["conditions"][0]["message"]

    with cluster.killed(NODE, "nodelet"):
        pass
    assert plugin.stdout.readline() == b"registered\n", "the agent's new socket tells it to"
    until("its devices on the Node again", lambda: figures(cluster) == ("2", "2"))
    assert container_status(ns.pod("first"))["containerID"] == kept
    ns.kubectl("delete", "pod", "second")
    ns.wait_running("third")
    assert device_of(ns, "third") == devices["second"]

    plugin.terminate()
    until("none to hand out", lambda: figures(cluster) == ("2", "0"))
    assert device_of(ns, "first") == devices["first"], "who has a device keeps it"
