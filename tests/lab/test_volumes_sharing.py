"""Rows D05 and D13: live updates, subPath, propagation; image volumes; what a pod may not reach."""

import json

from kit import config_map, container, pod, secret, until

MOUNT = [{"name": "v", "mountPath": "/v"}]
EMPTY = [{"name": "v", "emptyDir": {}}]


def test_d05_volumes_follow_their_objects_and_subpaths_do_not(ns):
    sources = [{"configMap": {"name": "m"}}, {"secret": {"name": "s"}}, {"downwardAPI": {"items": [LABELS]}}]
    mounts = [
        {"name": "m", "mountPath": "/m"},
        {"name": "s", "mountPath": "/s"},
        {"name": "all", "mountPath": "/all"},
        {"name": "m", "mountPath": "/fixed", "subPath": "key"},
    ]
    ns.apply(
        config_map("m", key="old"),
        secret("s", password="old"),
        pod(
            "p",
            container(volumeMounts=mounts),
            volumes=[
                {"name": "m", "configMap": {"name": "m"}},
                {"name": "s", "secret": {"secretName": "s"}},
                {"name": "all", "projected": {"sources": sources}},
            ],
        ),
    )
    ns.wait_running("p")
    show = "cat /m/key /s/password /all/key /all/password; grep -c changed /all/labels; cat /fixed"
    assert ns.sh("p", show, check=False).split() == ["oldoldoldold0", "old"]
    ns.apply(config_map("m", key="new", more="x"), secret("s", password="new"))
    ns.kubectl("label", "pod", "p", "changed=yes")
    until("new content", lambda: ns.sh("p", show, check=False).split() == ["newnewnewnew1", "old"])
    assert ns.sh("p", "cat /m/more /all/more") == "xx"
    ns.kubectl("delete", "configmap", "m")
    assert ns.sh("p", "cat /m/key") == "new"


LABELS = {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}


def test_d13_a_sidecar_shares_a_subpath_and_the_other_reads_it(ns):
    name = {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    writes = [{"name": "v", "mountPath": "/w", "subPathExpr": "logs/$(POD)"}]
    reads = [{"name": "v", "mountPath": "/r", "subPath": "logs/p", "readOnly": True}]
    ns.apply(
        pod(
            "p",
            container("echo line > /w/file; sleep 3600", name="a", volumeMounts=writes, env=[name]),
            container(name="b", volumeMounts=reads),
            volumes=EMPTY,
        )
    )
    ns.wait_running("p")
    until("the file", lambda: ns.sh("p", "cat /r/file", container="b", check=False).strip() == "line")
    assert "Read-only" in ns.sh("p", "touch /r/x 2>&1", container="b", check=False)


def test_d13_a_link_that_an_init_container_plants_leads_nowhere(ns):
    """CVE-2017-1002101."""
    ns.apply(
        pod(
            "p",
            container(volumeMounts=[{"name": "v", "mountPath": "/v", "subPath": "evil"}]),
            initContainers=[container("ln -s / /v/evil", name="i", volumeMounts=MOUNT)],
            volumes=EMPTY,
        )
    )
    until("the refusal", lambda: "it leads out of the volume" in json.dumps(ns.events("p")))
    assert not ns.pod("p")["status"]["containerStatuses"][0].get("containerID")


def test_d13_mounts_travel_as_the_propagation_says(ns):
    path = f"/tmp/{ns.name}"
    host = [{"name": "v", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}]

    def mount(kind):
        return [{**MOUNT[0], "mountPropagation": kind}]

    privileged = {"privileged": True}
    ns.apply(
        pod(
            "p",
            container(name="sees", volumeMounts=mount("HostToContainer")),
            container(name="blind", volumeMounts=mount("None")),
            container(name="makes", volumeMounts=mount("Bidirectional"), securityContext=privileged),
            node="n1",
            volumes=host,
        )
    )
    ns.wait_running("p")
    ns.cluster.node("n1", "sh", "-c", f"mkdir {path}/new; mount -t tmpfs host {path}/new; touch {path}/new/x")
    try:
        assert ns.sh("p", "ls /v/new", container="sees").strip() == "x"
        assert ns.sh("p", "ls /v/new", container="blind").strip() == ""
        ns.sh("p", "mkdir /v/up; mount -t tmpfs pod /v/up; touch /v/up/y", container="makes")
        assert ns.cluster.node("n1", "ls", f"{path}/up").strip() == "y"
        assert ns.sh("p", "ls /v/up", container="sees").strip() == "y"
    finally:
        ns.cluster.node("n1", "umount", f"{path}/new", f"{path}/up", check=False)


def test_d13_a_mount_left_in_an_empty_dir_is_unmounted_and_its_content_stays(ns):
    """What a Bidirectional container mounted there outlives it; deleting must not go through it."""
    path = f"/tmp/{ns.name}"
    ns.cluster.node("n1", "sh", "-c", f"mkdir {path}; echo precious > {path}/file")
    mounts = [{**MOUNT[0], "mountPropagation": "Bidirectional"}, {"name": "host", "mountPath": "/host"}]
    ns.apply(
        pod(
            "p",
            container(
                "mkdir /v/in; mount --bind /host /v/in; sleep 3600",
                volumeMounts=mounts,
                securityContext={"privileged": True},
            ),
            node="n1",
            volumes=[*EMPTY, {"name": "host", "hostPath": {"path": path}}],
        )
    )
    folder = f"/var/lib/kubelet/pods/{ns.wait_running('p')['metadata']['uid']}"
    inner = f"{folder}/volumes/kubernetes.io~empty-dir/v/in"
    until("the mount", lambda: inner in ns.cluster.node("n1", "cat", "/proc/self/mounts"))
    ns.kubectl("delete", "pod", "p", "--grace-period=1")
    until("the pod's folder gone", lambda: not ns.cluster.node("n1", "ls", folder, check=False).strip())
    assert inner not in ns.cluster.node("n1", "cat", "/proc/self/mounts")
    assert ns.cluster.node("n1", "cat", f"{path}/file").strip() == "precious"


def test_image_volumes(ns):
    image = {"name": "v", "image": {"reference": "nginx", "pullPolicy": "IfNotPresent"}}
    part = {"name": "v", "mountPath": "/part", "subPath": "usr/share/nginx/html"}
    ns.apply(
        pod("p", container(volumeMounts=[*MOUNT, part]), volumes=[image]),
        pod(
            "never",
            container(volumeMounts=MOUNT),
            volumes=[{"name": "v", "image": {"reference": "no/such:1", "pullPolicy": "Never"}}],
        ),
    )
    ns.wait_running("p")
    assert "nginx" in ns.sh("p", "cat /part/index.html /v/usr/share/nginx/html/index.html")
    assert "Read-only" in ns.sh("p", "touch /v/x 2>&1", check=False)
    until("the refusal", lambda: "ErrImageNeverPull" in json.dumps(ns.events("never")))


def test_an_nfs_volume_without_its_helper_or_server_is_told_as_such(ns):
    """This kernel may have no NFS client; the pod says what is missing and can be deleted."""
    nfs = [{"name": "v", "nfs": {"server": "203.0.113.1", "path": "/export"}}]
    ns.apply(pod("p", container(volumeMounts=MOUNT), node="n1", volumes=nfs))
    until("FailedMount", lambda: "FailedMount" in ns.reasons("p"), timeout=120)
    message = next(e["message"] for e in ns.events("p") if e["reason"] == "FailedMount")
    assert 'MountVolume.SetUp failed for volume "v"' in message
    assert "203.0.113.1" in message or "install nfs-common" in message
    ns.kubectl("delete", "pod", "p", "--grace-period=1", "--wait=false")
    ns.wait_gone("p")
