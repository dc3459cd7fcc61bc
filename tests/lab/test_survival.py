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


def test_the_node_stays_ready_and_keeps_its_pods_ready(ns):
    ns.apply(pod("p", container(), node="n1"))
    ns.wait_running("p")
    with ns.cluster.killed("n1", "nodelet"):
        pass
    until("a fresh heartbeat", lambda: ns.cluster.kubectl("get", "lease", "n1", "-n", "kube-node-lease"))
    node = json.loads(ns.cluster.kubectl("get", "node", "n1", "-o", "json"))
    ready = next(c for c in node["status"]["conditions"] if c["type"] == "Ready")
    assert ready["status"] == "True"
    ns.wait_running("p")
