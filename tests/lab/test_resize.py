"""In-place resize (KEP-1287): `kubectl patch --subresource resize` reaches the kernel, or says why not."""

import json

from kit import container, container_status, pod, until


def sized(cpu, memory):
    figures = {"cpu": cpu, "memory": memory}
    return {"requests": figures, "limits": figures}


def resize(ns, name, resources, *, container_name="c"):
    patch = {"spec": {"containers": [{"name": container_name, "resources": resources}]}}
    ns.kubectl("patch", "pod", name, "--subresource", "resize", "--patch", json.dumps(patch))


def condition(found, kind):
    return next((c for c in found["status"].get("conditions", ()) if c["type"] == kind), None)


def memory_limit(ns, name, node="n1"):
    """The memory limit of a container's own cgroup, as the kernel has it."""
    status = container_status(ns.pod(name))
    pid = ns.cluster.pid_of(status["containerID"], node=node)
    text = ns.cluster.node(node, "cat", f"/proc/{pid}/cgroup")
    paths = {kind: path for _, kind, path in (line.split(":", 2) for line in text.split())}
    if "memory" in paths:
        return int(
            ns.cluster.node(node, "cat", f"/sys/fs/cgroup/memory{paths['memory']}/memory.limit_in_bytes")
        )
    return int(ns.cluster.node(node, "cat", f"/sys/fs/cgroup{paths['']}/memory.max"))


def test_a_resize_reaches_the_kernel_without_a_restart(ns):
    ns.apply(pod("p", container(resources=sized("100m", "64Mi")), node="n1"))
    before = container_status(ns.wait_running("p"))
    assert memory_limit(ns, "p") == 64 << 20
    resize(ns, "p", sized("200m", "96Mi"))
    after = ns.wait_pod(
        "p",
        "the new limits in its status",
        lambda p: container_status(p).get("resources", {}).get("limits") == {"cpu": "200m", "memory": "96Mi"},
    )
    assert memory_limit(ns, "p") == 96 << 20
    status = container_status(after)
    assert (status["containerID"], status["restartCount"]) == (before["containerID"], 0)
    assert status["allocatedResources"] == {"cpu": "200m", "memory": "96Mi"}
    done = ns.wait_pod("p", "no condition left", lambda p: not condition(p, "PodResizeInProgress"))
    assert done["status"]["observedGeneration"] == done["metadata"]["generation"]
    until("ResizeCompleted event", lambda: "ResizeCompleted" in ns.reasons("p"))


def test_a_container_whose_policy_says_so_restarts(ns):
    policy = [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]
    ns.apply(pod("p", container(resources=sized("50m", "32Mi"), resizePolicy=policy), node="n1"))
    ns.wait_running("p")
    resize(ns, "p", sized("50m", "48Mi"))
    ns.wait_pod("p", "a restart", lambda p: container_status(p).get("restartCount") == 1)
    ns.wait_running("p")
    assert memory_limit(ns, "p") == 48 << 20


def test_what_does_not_fit_waits_also_over_an_agent_restart(ns):
    node = json.loads(ns.kubectl("get", "node", "n1", "-o", "json"))["status"]["allocatable"]
    most = f"{int(node['cpu']) * 1000 - 500}m"  # leaves room for the cluster's own pods
    ns.apply(
        pod("p", container(resources=sized("50m", "32Mi")), node="n1"),
        pod("other", container(resources=sized("600m", "32Mi")), node="n1"),
    )
    before = container_status(ns.wait_running("p"))
    ns.wait_running("other")
    with ns.cluster.killed("n1", "nodelet"):
        resize(ns, "p", sized(most, "32Mi"))
    found = ns.wait_pod("p", "PodResizePending", lambda p: condition(p, "PodResizePending"))
    assert condition(found, "PodResizePending")["reason"] == "Deferred"
    after = container_status(found)
    assert (after["containerID"], after["allocatedResources"]["cpu"]) == (before["containerID"], "50m")
    ns.kubectl("delete", "pod", "other")
    ns.wait_pod("p", "granted", lambda p: container_status(p)["allocatedResources"]["cpu"] == most)
    ns.wait_pod("p", "no condition left", lambda p: not condition(p, "PodResizePending"))


def test_resources_of_the_pod_as_a_whole(ns):
    ns.apply(pod("p", container(), node="n1", resources=sized("100m", "64Mi")))
    before = ns.wait_running("p")
    assert before["status"]["qosClass"] == "Guaranteed"
    assert memory_limit(ns, "p") == 64 << 20  # the pod's limit stands in for the container's
    patch = json.dumps({"spec": {"resources": sized("200m", "96Mi")}})
    ns.kubectl("patch", "pod", "p", "--subresource", "resize", "--patch", patch)
    after = ns.wait_pod(
        "p",
        "the pod's new resources in its status",
        lambda p: (
            p["status"].get("allocatedResources") == {"cpu": "200m", "memory": "96Mi"}
            and not condition(p, "PodResizeInProgress")
        ),
    )
    assert after["status"]["resources"] == sized("200m", "96Mi")
    assert memory_limit(ns, "p") == 96 << 20
    assert container_status(after)["restartCount"] == 0
