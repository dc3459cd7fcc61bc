"""Rows A03, A04, A06: what the Node object says of its machine; a node that is drained, one that is lost."""

import json

from kit import container, container_status, pod, until


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
    server = json.loads(cluster.kubectl("get", "--raw", "/version"))
    major, minor = status["nodeInfo"]["kubeletVersion"].removeprefix("v").split(".")[:2]
    assert (int(major), int(minor)) <= (int(server["major"]), int(server["minor"].rstrip("+")))
    described = cluster.kubectl("describe", "node", "n1")
    for words in ("InternalIP:", "Capacity:", "Allocatable:", "KubeletReady", "System Info:", "PodCIDR:"):
        assert words in described
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


def test_a04_pods_of_a_lost_node_are_replaced_and_none_is_left_when_it_returns(ns, cluster):
    soon = [
        {
            "key": f"node.kubernetes.io/{kind}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": 1,
        }
        for kind in ("not-ready", "unreachable")
    ]
    prefers = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n2"]}
    first = [{"weight": 100, "preference": {"matchExpressions": [prefers]}}]
    affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": first}}
    spec = pod("x", container(), tolerations=soon, affinity=affinity)["spec"]
    template = {"metadata": {"labels": {"app": "d"}}, "spec": spec}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}
    selector = {"matchLabels": {"app": "d"}}
    deployment["spec"] = {"replicas": 1, "selector": selector, "template": template}
    ns.apply(deployment)

    def pods(node):
        items = json.loads(ns.kubectl("get", "pods", "-l", "app=d", "-o", "json"))["items"]
        return [p["metadata"]["name"] for p in items if p["spec"].get("nodeName") == node]

    (name,) = until("a pod on n2", lambda: pods("n2"))
    identifier = container_status(ns.wait_running(name))["containerID"]

    def ready():
        node = json.loads(cluster.kubectl("get", "node", "n2", "-o", "json"))
        return next(c["status"] for c in node["status"]["conditions"] if c["type"] == "Ready")

    with cluster.killed("n2", "nodelet"):
        until("n2 lost", lambda: ready() == "Unknown", timeout=90)
        (other,) = until("its pod's replacement on n1", lambda: pods("n1"))
        ns.wait_running(other)
        # Nobody but its node can end it: it runs on there, and the API says that it is to go.
        assert cluster.pid_of(identifier, node="n2") is not None
        assert ns.pod(name)["metadata"]["deletionTimestamp"]
    until("n2 Ready again", lambda: ready() == "True")
    ns.wait_gone(name)
    until("no ghost of it", lambda: cluster.pid_of(identifier, node="n2") is None)
    listed = cluster.node("n2", cluster.program("nodelet"), "pods")
    assert name not in listed
    assert pods("n2") == [] and pods("n1") == [other]


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
