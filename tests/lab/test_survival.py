"""kill -9 of nodelet, of nodelet-cri and of both: no container, exit code or log line is lost."""

import json

import pytest
from kit import container, container_status, pod, until

PROGRAMS = [("nodelet",), ("nodelet-cri",), ("nodelet", "nodelet-cri")]


@pytest.mark.parametrize("programs", PROGRAMS, ids="+".join)
def test_containers_outlive_the_programs(ns, programs):
    counter = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done"
    waits = "while [ ! -e /x ]; do sleep 0.1; done; exit 42"
    ns.apply(
        pod("stays", container(counter), node="n1"),
        pod(
            "ends",
            container(waits),
            restartPolicy="Never",
            node="n1",
        ),
    )
    before = container_status(ns.wait_running("stays"))
    ends = container_status(ns.wait_running("ends"))
    pid = ns.cluster.pid_of(before["containerID"], node="n1")
    ending = ns.cluster.pid_of(ends["containerID"], node="n1")
    with ns.cluster.killed("n1", *programs):
        ns.cluster.node("n1", "touch", f"/proc/{ending}/root/x")
        until("the process ended", lambda: ns.cluster.pid_of(ends["containerID"], node="n1") is None)
        assert ns.cluster.pid_of(before["containerID"], node="n1") == pid
    finished = ns.wait_phase("ends", "Failed")
    assert container_status(finished)["state"]["terminated"]["exitCode"] == 42
    after = container_status(ns.wait_running("stays"))
    assert after["containerID"] == before["containerID"]
    assert after["restartCount"] == 0
    assert ns.cluster.pid_of(after["containerID"], node="n1") == pid
    lines = ns.kubectl("logs", "stays").splitlines()
    assert lines == [f"line {i + 1}" for i in range(len(lines))]
    assert ns.sh("stays", "echo exec works").strip() == "exec works"
    ns.kubectl("delete", "pod", "stays", "ends", "--grace-period=1")


def test_a_pod_deleted_while_the_node_was_away_is_cleaned_up(ns):
    ns.apply(pod("p", container(), node="n1"))
    identifier = container_status(ns.wait_running("p"))["containerID"]
    with ns.cluster.killed("n1", "nodelet", "nodelet-cri"):
        ns.kubectl("delete", "pod", "p", "--grace-period=0", "--force")
    until("its process gone", lambda: ns.cluster.pid_of(identifier, node="n1") is None)


def ready_since(thing):
    """Since when a pod or node is Ready, or why it is not."""
    ready = next(c for c in thing["status"]["conditions"] if c["type"] == "Ready")
    return (ready["status"], ready["lastTransitionTime"])


def test_node_and_pods_stay_ready_over_a_restart(ns):
    ns.apply(pod("p", container(), node="n1"))
    pod_since = ready_since(ns.wait_running("p"))
    node_since = ready_since(json.loads(ns.cluster.kubectl("get", "node", "n1", "-o", "json")))

    def renewed():
        path = "jsonpath={.spec.renewTime}"
        return ns.cluster.kubectl("get", "lease", "n1", "-n", "kube-node-lease", "-o", path)

    with ns.cluster.killed("n1", "nodelet"):
        before = renewed()
    until("a heartbeat after the restart", lambda: renewed() != before)
    assert ready_since(json.loads(ns.cluster.kubectl("get", "node", "n1", "-o", "json"))) == node_since
    assert ready_since(ns.pod("p")) == pod_since
    assert node_since[0] == pod_since[0] == "True"
