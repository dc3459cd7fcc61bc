"""Rows A03, A06: what the Node object says of its machine, and a node that is drained."""

import json

from kit import container, pod, until


def test_a03_the_node_tells_what_it_is(cluster):
    node = json.loads(cluster.kubectl("get", "node", "n1", "-o", "json"))
    labels, status = node["metadata"]["labels"], node["status"]
    assert labels["kubernetes.io/hostname"] == "n1"
    assert labels["kubernetes.io/os"] == "linux"
    assert labels["kubernetes.io/arch"] == status["nodeInfo"]["architecture"]
    kinds = {address["type"] for address in status["addresses"]}
    assert kinds == {"InternalIP", "Hostname"}
    conditions = {c["type"]: c["status"] for c in status["conditions"] if c["type"] != "NetworkUnavailable"}
    pressures = dict.fromkeys(("MemoryPressure", "DiskPressure", "PIDPressure"), "False")
    assert conditions == {**pressures, "Ready": "True"}
    assert status["nodeInfo"]["containerRuntimeVersion"].startswith("nodelet-cri://")
    assert status["daemonEndpoints"]["kubeletEndpoint"]["Port"] == 10250
    handlers = {handler["name"]: handler.get("features", {}) for handler in status["runtimeHandlers"]}
    assert handlers[""]["recursiveReadOnlyMounts"] is True
    assert handlers[""]["userNamespaces"] is True
    assert status["features"]["supplementalGroupsPolicy"] is True
    assert "ExtendWebSocketsToKubelet" in status["declaredFeatures"]
    sizes = [image["sizeBytes"] for image in status["images"]]
    assert sizes == sorted(sizes, reverse=True)
    for name in ("cpu", "memory", "ephemeral-storage", "pods"):
        assert name in status["capacity"] and name in status["allocatable"]
    lease = json.loads(cluster.kubectl("-n", "kube-node-lease", "get", "lease", "n1", "-o", "json"))
    assert lease["spec"]["holderIdentity"] == "n1"
    assert lease["metadata"]["ownerReferences"][0]["uid"] == node["metadata"]["uid"]


def test_a06_a_drained_node_ends_its_pods_in_peace(ns, cluster):
    volumes = [{"name": "v", "emptyDir": {}}]
    script = "trap 'echo bye; exit 0' TERM; echo here; sleep 3600 & wait"
    ns.apply(pod("p", container(script), node="n2", labels={"drain": ns.name}, volumes=volumes))
    ns.wait_running("p")
    try:
        options = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=60s")
        code, _, errors = cluster.kubectl_status("drain", "n2", f"--pod-selector=drain={ns.name}", *options)
        assert code == 0, errors
        until("pod gone", lambda: not ns.pod("p"))
        ns.apply(pod("q", container(), node="n2"))
        found = ns.wait_pod("q", "refused", lambda p: p["status"].get("conditions"))
        assert found["status"]["conditions"][0]["reason"] == "Unschedulable"
    finally:
        cluster.kubectl("uncordon", "n2")
    ns.wait_running("q")
