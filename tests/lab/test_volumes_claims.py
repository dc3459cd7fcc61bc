"""Rows D06, D08, D10, D11: claims on PersistentVolumes of this node, and what happens when they end."""

import json
import shutil

import pytest
from kit import container, pod, until

from deploy.labkit.oci import Entry, build_image

MIB = 1 << 20


def volume(name, claim, ns, source, *, node="n1", modes=("ReadWriteOnce",), **spec):
    """A PersistentVolume on one node for one claim, or for a class when there is no claim."""
    affinity = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    if claim:
        spec["claimRef"] = {"namespace": ns.name, "name": claim}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {"test": ns.name}},
        "spec": {
            "capacity": {"storage": "8Mi"},
            "accessModes": list(modes),
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": ns.name,
            "nodeAffinity": {"required": {"nodeSelectorTerms": [affinity]}},
            **source,
            **spec,
        },
    }


def claim(name, ns, *, modes=("ReadWriteOnce",), **spec):
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": list(modes),
            "resources": {"requests": {"storage": "1Mi"}},
            "storageClassName": ns.name,
            **spec,
        },
    }


def uses(name, **source):
    return [{"name": "v", "persistentVolumeClaim": {"claimName": name, **source}}]


@pytest.fixture
def disk(ns):
    """A folder of n1 for the test; the test's PersistentVolumes go with it."""
    path = f"/tmp/{ns.name}"
    ns.cluster.node("n1", "mkdir", "-p", path)
    yield path
    ns.cluster.kubectl("delete", "pv", "-l", f"test={ns.name}", "--wait=false")
    ns.cluster.node("n1", "rm", "-rf", path)


MOUNT = [{"name": "v", "mountPath": "/v"}]


@pytest.mark.parametrize("kind", ["hostPath", "local"])
def test_d06_data_outlives_the_pod(ns, disk, kind):
    ns.apply(
        volume(f"{ns.name}-pv", "c", ns, {kind: {"path": disk}}),
        claim("c", ns),
        pod("one", container("echo kept > /v/file; sleep 3600", volumeMounts=MOUNT), volumes=uses("c")),
    )
    ns.wait_running("one")
    until("the file", lambda: ns.cluster.node("n1", "cat", f"{disk}/file", check=False).strip() == "kept")
    ns.kubectl("delete", "pod", "one", "--grace-period=1")
    ns.apply(pod("two", container(volumeMounts=MOUNT), volumes=uses("c", readOnly=True)))
    ns.wait_running("two")
    assert ns.sh("two", "cat /v/file").strip() == "kept"
    assert "Read-only" in ns.sh("two", "touch /v/x 2>&1", check=False)


def test_d06_a_volume_for_one_pod_is_refused_to_a_second(ns, disk):
    once = ("ReadWriteOncePod",)
    ns.apply(
        volume(f"{ns.name}-pv", "c", ns, {"local": {"path": disk}}, modes=once),
        claim("c", ns, modes=once),
        pod("one", container(volumeMounts=MOUNT), volumes=uses("c")),
    )
    ns.wait_running("one")
    late = pod("two", container(volumeMounts=MOUNT), volumes=uses("c"))
    late["spec"]["nodeName"] = "n1"  # past the scheduler, which would not let it
    ns.apply(late)
    until("FailedMount", lambda: "FailedMount" in ns.reasons("two"))
    message = next(e["message"] for e in ns.events("two") if e["reason"] == "FailedMount")
    assert "ReadWriteOncePod access mode and is already in use by another pod" in message
    ns.kubectl("delete", "pod", "one", "--grace-period=1")
    ns.wait_running("two")


def test_d08_each_pod_of_a_stateful_set_serves_its_own_local_volume(ns, disk):
    template = {
        "metadata": {"labels": {"app": "s"}},
        "spec": {
            "securityContext": {"fsGroup": 1234},
            "containers": [container(volumeMounts=MOUNT)],
        },
    }
    volumes = []
    owned = {"pv.beta.kubernetes.io/gid": "4321"}
    for number in range(2):
        ns.cluster.node("n1", "sh", "-c", f"mkdir {disk}/{number}; echo {number} > {disk}/{number}/index")
        path = {"local": {"path": f"{disk}/{number}"}}
        volumes.append(volume(f"{ns.name}-{number}", f"v-s-{number}", ns, path))
        volumes[-1]["metadata"]["annotations"] = owned
    ns.apply(
        *volumes,
        {
            "apiVersion": "apps/v1",
            "kind": "StatefulSet",
            "metadata": {"name": "s"},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": {"app": "s"}},
                "template": template,
                "volumeClaimTemplates": [claim("v", ns)],
            },
        },
    )
    for number in range(2):
        ns.wait_running(f"s-{number}")
        assert ns.sh(f"s-{number}", "cat /v/index").strip() == str(number)
        assert ns.sh(f"s-{number}", "stat -c '%g %a' /v /v/index").split() == ["1234", "2775", "1234", "664"]
        assert {"1234", "4321"} <= set(ns.sh(f"s-{number}", "id -G").split())


def test_d10_a_file_is_a_block_device_in_the_pod(ns, disk):
    ns.cluster.node("n1", "truncate", "-s", str(8 * MIB), f"{disk}/image")
    source = {"local": {"path": f"{disk}/image"}}
    devices = [{"name": "v", "devicePath": "/dev/xvda"}]
    script = "blockdev --getsize64 /dev/xvda; echo written > /dev/xvda; sync; sleep 3600"
    ns.apply(
        volume(f"{ns.name}-pv", "c", ns, source, volumeMode="Block"),
        claim("c", ns, volumeMode="Block"),
        pod("p", container(script, volumeDevices=devices), volumes=uses("c")),
        pod("wrong", container(volumeMounts=MOUNT), node="n1", volumes=uses("c")),
    )
    found = ns.wait_running("p")
    until("the size", lambda: ns.kubectl("logs", "p").strip() == str(8 * MIB))
    until("FailedMount", lambda: "use volumeDevices" in json.dumps(ns.events("wrong")))
    ns.kubectl("delete", "pod", "p", "wrong", "--grace-period=1")
    folder = f"/var/lib/kubelet/pods/{found['metadata']['uid']}"
    until("the pod's folder gone", lambda: not ns.cluster.node("n1", "ls", folder, check=False).strip())
    assert ns.cluster.node("n1", "head", "-c", "7", f"{disk}/image") == "written"
    until("its loop device free", lambda: f"{disk}/image" not in ns.cluster.node("n1", "losetup", "-a"))


def test_d11_a_claim_in_use_stays_until_its_pod_is_gone(ns, disk):
    ns.apply(
        volume(f"{ns.name}-pv", "c", ns, {"hostPath": {"path": disk}}),
        claim("c", ns),
        pod("p", container("echo here > /v/file; sleep 3600", volumeMounts=MOUNT), volumes=uses("c")),
    )
    ns.wait_running("p")
    ns.kubectl("delete", "pvc", "c", "--wait=false")
    assert ns.get("pvc", "c")["metadata"]["deletionTimestamp"]
    assert ns.sh("p", "cat /v/file").strip() == "here"
    ns.kubectl("delete", "pod", "p", "--grace-period=1")
    until("the claim gone", lambda: not ns.get("pvc", "c"))
    assert ns.cluster.node("n1", "cat", f"{disk}/file").strip() == "here"


def recycling():
    """An image for the controller's pod, whose command needs a `find -delete` that busybox has not."""
    with open(shutil.which("busybox"), "rb") as program:
        busybox = Entry(data=program.read(), mode=0o755)
    find = b"find /scrub -mindepth 1 -maxdepth 1 -exec rm -rf {} +"
    shell = Entry(data=b"#!/bin/busybox sh\n" + find + b"\n", mode=0o755)
    return {"bin/busybox": busybox, "bin/sh": shell}


def test_d11_a_recycled_volume_is_emptied_by_a_pod_and_free_again(ns, disk, lab):
    name = f"{ns.name}-pv"
    recycled = volume(name, "", ns, {"hostPath": {"path": disk}}, persistentVolumeReclaimPolicy="Recycle")
    write = "mkdir -p /v/a/b; echo old > /v/a/b/file; sleep 3600"
    ns.cluster.kubectl("cordon", "n2")  # the pod that empties a hostPath volume has no node affinity
    try:
        ns.apply(
            recycled,
            claim("c", ns),
            pod("p", container(write, volumeMounts=MOUNT), volumes=uses("c")),
        )
        ns.wait_pod("p", "written", lambda p: ns.cluster.node("n1", "ls", disk).strip() == "a")
        ns.kubectl("delete", "pod", "p", "--grace-period=1")
        ns.kubectl("delete", "pvc", "c")

        def phase():
            return json.loads(ns.cluster.kubectl("get", "pv", name, "-o", "json"))["status"]["phase"]

        def recycler():
            path = "jsonpath={.spec.containers[0].image}"
            return ns.cluster.kubectl("get", "pod", f"recycler-for-{name}", "-o", path, "--ignore-not-found")

        # Where the image is known already, the pod may have come and gone before anybody looks.
        seen = until("its recycler, or its work", lambda: recycler() or phase() == "Available")
        if seen is not True:
            repository, _, tag = seen.rpartition(":")
            build_image(lab.layout.registry, repository, tags=[tag], files=recycling())
        until("the volume free again", lambda: phase() == "Available")
    finally:
        ns.cluster.kubectl("uncordon", "n2")
    assert ns.cluster.node("n1", "ls", disk) == ""


def test_generic_ephemeral_volumes_are_the_pods_own(ns, disk):
    template = {"spec": claim("x", ns)["spec"]}
    own = [{"name": "v", "ephemeral": {"volumeClaimTemplate": template}}]
    ns.apply(
        volume(f"{ns.name}-pv", "p-v", ns, {"local": {"path": disk}}),
        claim("q-v", ns),  # somebody else's, of the very name that pod q's claim would have
        pod("p", container("echo own > /v/file; sleep 3600", volumeMounts=MOUNT), volumes=own),
    )
    ns.wait_running("p")
    until("the file", lambda: ns.cluster.node("n1", "cat", f"{disk}/file", check=False).strip() == "own")
    stranger = pod("q", container(volumeMounts=MOUNT), volumes=own)
    stranger["spec"]["nodeName"] = "n1"
    ns.apply(stranger)
    until("FailedMount", lambda: "was not created for this pod" in json.dumps(ns.events("q")))
    ns.kubectl("delete", "pod", "p", "--grace-period=1")
    until("its claim gone", lambda: not ns.get("pvc", "p-v"))
