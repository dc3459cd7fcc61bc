"""Rows A04, A05: while the API server is away pods run, restart, are probed and explained by their node."""

import json

from kit import container, container_status, http_server, is_ready, pod, service, until

READY = {"exec": {"command": ["test", "!", "-e", "/bad"]}, "periodSeconds": 1, "failureThreshold": 1}


def believed(ns, name, *, node="n1"):
    """What the node itself says of a pod, once it knows of it: `nodelet why -o json`."""
    program = ns.cluster.program("nodelet")
    asked = (program, "why", f"{ns.name}/{name}", "-o", "json")
    found = until("the node's word", lambda: json.loads(ns.cluster.node(node, *asked, check=False) or "[]"))
    return found[0]


def test_a05_pods_live_on_without_the_api_and_the_latest_status_is_delivered(ns):
    ns.apply(
        pod("web", container(http_server("hi"), readinessProbe=READY), node="n1"),
        pod("other", container(), node="n2"),
    )
    web, other = ns.wait_running("web"), ns.wait_running("other")
    address, first = web["status"]["podIP"], container_status(web)["containerID"]
    with ns.cluster.without_api():
        fetch = ("busybox", "wget", "-qO-", f"http://{address}:8080/")
        assert ns.cluster.node("n1", *fetch).strip() == "hi"
        assert ns.cluster.node("n2", *fetch).strip() == "hi"
        process = ns.cluster.pid_of(first, node="n1")
        ns.cluster.node("n1", "kill", "-9", str(process))
        restarted = until(
            "a restart without the API",
            lambda: (found := believed(ns, "web"))["restarts"] == 1 and found["ready"] == 1 and found,
        )
        assert any("SIGKILL" in line["what"] for line in restarted["timeline"])
        until("the reason why nobody has heard of it", lambda: believed(ns, "web")["undelivered"])
        assert ns.cluster.node("n1", *fetch).strip() == "hi"
    after = ns.wait_pod(
        "web", "its restart in the API", lambda p: container_status(p)["restartCount"] == 1 and is_ready(p)
    )
    assert container_status(after)["containerID"] != first
    until("nothing undelivered", lambda: not believed(ns, "web")["undelivered"])
    still = ns.pod("other")
    assert container_status(still)["containerID"] == container_status(other)["containerID"]
    until("the crash among the events", lambda: "ContainerDied" in ns.reasons("web"))


def test_probes_and_restarts_go_on_without_the_api_under_a_new_agent_too(ns):
    alive = {"exec": {"command": ["test", "!", "-e", "/sick"]}, "periodSeconds": 1, "failureThreshold": 1}
    ns.apply(
        service("s", "p"),
        pod("p", container(http_server("hi"), readinessProbe=READY), node="n1"),
        pod(
            "q", container(http_server("hi"), livenessProbe=alive), node="n1", terminationGracePeriodSeconds=1
        ),
    )
    first = {name: container_status(ns.wait_running(name))["containerID"] for name in ("p", "q")}
    process = {name: ns.cluster.pid_of(first[name], node="n1") for name in first}
    with ns.cluster.without_api():
        ns.cluster.node("n1", "touch", f"/proc/{process['p']}/root/bad")
        until("unready in the node's eyes", lambda: believed(ns, "p")["ready"] == 0)
        (blocker,) = believed(ns, "p")["blockers"]
        assert blocker["cause"].startswith("Readiness probe failed")
        with ns.cluster.killed("n1", "nodelet"):
            pass  # an agent that starts without the API
        until("unready in its successor's eyes", lambda: believed(ns, "p")["ready"] == 0)
        ns.cluster.node("n1", "touch", f"/proc/{process['q']}/root/sick")
        until("a restart", lambda: (q := believed(ns, "q"))["restarts"] == 1 and q["ready"] == 1)
        assert ns.cluster.pid_of(first["p"], node="n1") == process["p"]
    ns.wait_pod("p", "not ready in the API", lambda p: not is_ready(p))
    assert container_status(ns.pod("p"))["restartCount"] == 0
    ns.wait_pod(
        "q",
        "its restart in the API",
        lambda q: container_status(q)["restartCount"] == 1 and is_ready(q),
    )
    found = ns.sh("q", "cat /proc/1/environ /var/run/secrets/kubernetes.io/serviceaccount/token")
    assert "KUBERNETES_SERVICE_HOST=" in found


def test_a04_what_was_deleted_during_a_partition_ends_once_and_is_not_doubled(ns):
    ns.apply(pod("gone", container(), node="n1"), pod("stays", container(), node="n1"))
    gone = container_status(ns.wait_running("gone"))["containerID"]
    stays = container_status(ns.wait_running("stays"))["containerID"]
    uid = ns.pod("gone")["metadata"]["uid"]
    with ns.cluster.killed("n1", "nodelet"):
        ns.kubectl("delete", "pod", "gone", "--grace-period=0", "--force")
        ns.apply(pod("gone", container(), node="n1"))
    until("the old one's process gone", lambda: ns.cluster.pid_of(gone, node="n1") is None)
    fresh = ns.wait_running("gone")
    assert fresh["metadata"]["uid"] != uid
    names = ns.cluster.node("n1", ns.cluster.program("nodelet"), "pods").split()
    assert names.count("gone") == 1
    after = container_status(ns.wait_running("stays"))
    assert (after["containerID"], after["restartCount"]) == (stays, 0)
