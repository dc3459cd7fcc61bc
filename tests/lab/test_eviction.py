"""Rows A03, B24, B27: a small node that runs short of memory and disk, and says so.

The node is one of its own, with 320 MiB of memory (a limit on its cgroup) and 96 MiB of disk for pods (a
tmpfs): nothing of the machine is ever used up. Pods name the node, so that no scheduler keeps them away.
"""

from __future__ import annotations

import json

import pytest
import yaml
from kit import container, pod, until

from agent.api import quantity
from host.cgroups import Cgroups, Resources

NODE = "small"
MIB = 1 << 20
CONFIGURATION = {
    "enforceNodeAllocatable": ["pods"],
    "evictionHard": {"memory.available": "120Mi", "nodefs.available": "40Mi"},
    "evictionPressureTransitionPeriod": "5s",
    "systemReserved": {"cpu": "100m", "memory": "10Mi"},
}


@pytest.fixture(scope="module")
def small(lab):
    """The node, Ready; removed at the end."""
    layout = lab.layout
    try:
        lab.add_node(NODE)
        lab.kubectl("taint", "node", NODE, "test/small=true:NoSchedule")
        lab.stop(NODE, "nodelet")
        path = layout.machine(NODE) / "var/lib/kubelet/config.yaml"
        document = yaml.safe_load(path.read_text()) | CONFIGURATION
        lab.shell(NODE, "mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", "/var/lib/kubelet")
        script = "cat > /var/lib/kubelet/config.yaml"
        lab.shell(NODE, "sh", "-c", f"{script} <<'end'\n{yaml.safe_dump(document)}\nend")
        Cgroups().create(layout.node_cgroup(NODE), Resources(memory_limit=320 * MIB))
        lab.start(NODE, "nodelet")
        until("the node with its new size", lambda: node(lab)["status"]["capacity"]["memory"] == "320Mi")
        yield NODE
    finally:
        lab.remove_node(NODE)


def node(lab) -> dict:
    return json.loads(lab.kubectl("get", "node", NODE, "-o", "json"))


def pressure(lab, kind: str) -> str:
    return next(c["status"] for c in node(lab)["status"]["conditions"] if c["type"] == kind)


def here(name: str, *containers: dict, **spec) -> dict:
    made = pod(name, *containers, nodeName=NODE, terminationGracePeriodSeconds=1, **spec)
    made["spec"]["tolerations"] = [{"operator": "Exists", "effect": "NoSchedule", "key": "test/small"}]
    return made


def writer(path: str, mebibytes: int, **fields) -> dict:
    script = f"dd if=/dev/zero of={path}/f bs=1048576 count={mebibytes}; sleep 3600"
    return container(f"trap 'exit 0' TERM; {script} & wait", **fields)


def on(volume: str) -> dict:
    return {"volumeMounts": [{"name": "v", "mountPath": volume}]}


def test_a03_b24_a_node_hands_out_what_it_keeps(small, lab):
    status = node(lab)["status"]
    cores = int(status["capacity"]["cpu"])
    assert status["allocatable"]["memory"] == f"{320 - 10 - 120}Mi"
    assert status["allocatable"]["cpu"] == f"{cores * 1000 - 100}m"
    assert quantity.value(status["allocatable"]["ephemeral-storage"]) == (96 - 40) * MIB
    found = Cgroups().stats(f"{lab.layout.node_cgroup(NODE)}/kubepods")
    assert found.memory_limit == (320 - 10) * MIB


def test_b27_memory_pressure_ends_the_pod_that_asked_for_nothing(small, lab, ns):
    asked = {"limits": {"memory": "64Mi", "cpu": "100m"}}
    hog = container("head -c 210m /dev/zero | tail -c 210m | sleep 3600")
    ns.apply(here("calm", container(resources=asked)))
    ns.wait_running("calm")
    ns.apply(here("hog", hog))
    found = ns.wait_phase("hog", "Failed")
    status = found["status"]
    assert status["reason"] == "Evicted"
    low = "The node was low on resource: memory. Threshold quantity: 120Mi, available: "
    assert status["message"].startswith(low)
    assert "Container c was using " in status["message"]
    assert "request is 0, has larger consumption of memory" in status["message"]
    kinds = {c["type"]: c.get("reason") for c in status["conditions"]}
    assert kinds["DisruptionTarget"] == "TerminationByKubelet"
    assert pressure(lab, "MemoryPressure") == "True"
    ns.apply(here("later", container()), here("asking", container(resources=asked)))
    refused = ns.wait_phase("later", "Failed")["status"]
    assert refused["reason"] == "Evicted"
    assert "The node had condition: [MemoryPressure]." in refused["message"]
    ns.wait_running("asking")
    assert ns.pod("calm")["status"]["phase"] == "Running"
    until("event Evicted", lambda: "Evicted" in ns.reasons("hog"))
    until("no pressure", lambda: pressure(lab, "MemoryPressure") == "False")


def test_b27_disk_pressure_ends_the_pod_that_wrote_most(small, lab, ns):
    volumes = [{"name": "v", "emptyDir": {}}]
    ns.apply(here("little", writer("/v", 1, **on("/v")), volumes=volumes))
    ns.wait_running("little")
    ns.apply(here("much", writer("/v", 64, **on("/v")), volumes=volumes))
    status = ns.wait_phase("much", "Failed")["status"]
    assert status["reason"] == "Evicted"
    assert "low on resource: ephemeral-storage. Threshold quantity: 40Mi" in status["message"]
    until("pressure", lambda: pressure(lab, "DiskPressure") == "True")
    until("no pressure", lambda: pressure(lab, "DiskPressure") == "False")
    assert ns.pod("little")["status"]["phase"] == "Running"


def test_b27_a_pod_is_held_to_its_own_storage_limits(small, lab, ns):
    limit = {"limits": {"ephemeral-storage": "4Mi"}}
    volume = {"name": "v", "emptyDir": {"sizeLimit": "4Mi"}}
    ns.apply(
        here("volume", writer("/v", 8, **on("/v")), volumes=[volume]),
        here("layer", writer("/tmp", 8, resources=limit)),
        here("fits", writer("/v", 2, **on("/v"), resources=limit), volumes=[volume]),
    )
    texts = {name: ns.wait_phase(name, "Failed")["status"]["message"] for name in ("volume", "layer")}
    assert texts["volume"] == 'Usage of EmptyDir volume "v" exceeds the limit "4Mi". '
    assert texts["layer"].startswith(
        "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi"
    )
    assert ns.pod("fits")["status"]["phase"] == "Running"
    assert pressure(lab, "DiskPressure") == "False"
