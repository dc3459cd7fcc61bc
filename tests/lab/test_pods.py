"""Rows B01, B02, B05, B07, B10, B11, B14, B15, B18 to B20: a pod's life as kubectl shows it."""

import ipaddress
import json
from datetime import datetime, timedelta

import pytest
from forwarding import check_a_refused_connection_ends_nothing
from kit import (
    BUSYBOX,
    container,
    container_status,
    http_server,
    pod,
    until,
    waiting_message,
    waiting_reason,
)


def test_b01_run_a_pod(ns):
    ns.kubectl("run", "nginx", "--image=nginx")
    found = ns.wait_running("nginx")
    node = json.loads(ns.kubectl("get", "node", found["spec"]["nodeName"], "-o", "json"))
    assert ipaddress.ip_address(found["status"]["podIP"]) in ipaddress.ip_network(node["spec"]["podCIDR"])
    assert "Welcome to nginx" in ns.cluster.node(
        "n1", "busybox", "wget", "-qO-", f"http://{found['status']['podIP']}/"
    )
    ns.kubectl("delete", "pod", "nginx")
    assert ns.pod("nginx") == {}


def test_b02_describe_shows_conditions_events_ids(ns):
    ns.apply(pod("p", container(), node="n1"))
    status = ns.wait_running("p")["status"]
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "PodReadyToStartContainers": "True",
        "PodScheduled": "True",
        "Initialized": "True",
        "ContainersReady": "True",
        "Ready": "True",
    }
    assert status["qosClass"] == "BestEffort"
    assert status["podIPs"] == [{"ip": status["podIP"]}]
    assert status["hostIPs"] == [{"ip": status["hostIP"]}]
    one = status["containerStatuses"][0]
    assert one["containerID"].startswith("nodelet-cri://")
    assert "@sha256:" in one["imageID"]
    assert one["started"] is True
    ns.kubectl("delete", "pod", "p")
    until("event Killing", lambda: "Killing" in ns.reasons("p"))
    reasons = [event["reason"] for event in ns.events("p")]
    order = ["Scheduled", "Pulled", "Created", "Started", "Killing"]
    assert [reason for reason in reasons if reason in order] == order


def test_b05_image_configuration_and_overrides(ns):
    ns.apply(
        pod("echo", {"name": "c", "image": BUSYBOX, "command": ["echo", "TEST"]}, restartPolicy="Never"),
        pod("args", {"name": "c", "image": BUSYBOX, "args": ["echo", "ARGS"]}, restartPolicy="Never"),
        pod(
            "dir",
            {"name": "c", "image": BUSYBOX, "command": ["pwd"], "workingDir": "/made/here"},
            restartPolicy="Never",
        ),
    )
    for name, line in (("echo", "TEST"), ("args", "ARGS"), ("dir", "/made/here")):
        ns.wait_phase(name, "Succeeded")
        assert ns.kubectl("logs", name) == line + "\n"


def test_b07_pull_errors_name_the_registrys_reason_and_recover(ns):
    ns.apply(pod("p", {"name": "c", "image": "busybox:no-such-tag", "command": ["sleep", "60"]}))
    ns.wait_pod("p", "ErrImagePull", lambda p: waiting_reason(p) in ("ErrImagePull", "ImagePullBackOff"))
    ns.wait_pod("p", "ImagePullBackOff", lambda p: waiting_reason(p) == "ImagePullBackOff")
    until("Failed event", lambda: "Failed" in ns.reasons("p"))
    assert "not found" in ns.kubectl("describe", "pod", "p")
    ns.kubectl("set", "image", "pod/p", "c=busybox:1.36")
    ns.wait_running("p")


def test_b07_bad_image_name(ns):
    ns.apply(pod("p", {"name": "c", "image": "BAD//name::x"}))
    ns.wait_pod("p", "InvalidImageName", lambda p: waiting_reason(p) == "InvalidImageName")


def test_b10_restart_policies(ns):
    ns.apply(
        pod("always", container("exit 1")),
        pod("never", container("exit 3"), restartPolicy="Never"),
        pod("done", container("exit 0"), restartPolicy="OnFailure"),
        pod("retry", container("exit 4"), restartPolicy="OnFailure"),
    )
    failed = ns.wait_phase("never", "Failed")
    assert container_status(failed)["state"]["terminated"]["exitCode"] == 3
    assert container_status(failed)["restartCount"] == 0
    assert container_status(ns.wait_phase("done", "Succeeded"))["restartCount"] == 0
    for name, code in (("always", 1), ("retry", 4)):
        looping = ns.wait_pod(name, "CrashLoopBackOff", lambda p: waiting_reason(p) == "CrashLoopBackOff")
        assert container_status(looping)["lastState"]["terminated"]["exitCode"] == code
        assert "back-off" in waiting_message(looping)
        ns.wait_pod(name, "a restart", lambda p: container_status(p)["restartCount"] >= 1)
    until("BackOff event", lambda: "BackOff" in ns.reasons("always"))


def test_b11_a_killed_process_is_restarted(ns):
    ns.apply(pod("p", container(), node="n1"))
    before = container_status(ns.wait_running("p"))
    ns.cluster.node("n1", "kill", "-9", str(ns.cluster.pid_of(before["containerID"], node="n1")))
    restarted = ns.wait_pod("p", "restartCount 1", lambda p: container_status(p)["restartCount"] == 1)
    after = container_status(restarted)
    assert after["lastState"]["terminated"]["exitCode"] == 137
    assert after["containerID"] != before["containerID"]
    ns.wait_running("p")


def test_b14_termination(ns):
    path = f"/tmp/{ns.name}"
    share = {"volumes": [{"name": "v", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}]}
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    deaf = pod(
        "deaf",
        container("trap '' TERM; while :; do sleep 0.1; done"),
        node="n1",
        terminationGracePeriodSeconds=3,
    )
    # The finalizer keeps the object, with its last status, after the node is done with the pod.
    deaf["metadata"]["finalizers"] = ["nodelet.test/keep"]
    ns.apply(
        deaf,
        pod(
            "polite",
            container(
                "trap 'echo TERM >> /v/polite; exit 0' TERM; while :; do sleep 0.1; done",
                lifecycle={"preStop": {"exec": {"command": ["sh", "-c", "echo preStop >> /v/polite"]}}},
                **mount,
            ),
            node="n1",
            **share,
        ),
    )
    ns.wait_running("polite")
    ns.wait_running("deaf")
    ns.kubectl("delete", "pod", "polite")
    assert ns.cluster.node("n1", "cat", f"{path}/polite").split() == ["preStop", "TERM"]
    ns.kubectl("delete", "pod", "deaf", "--wait=false")
    ended = ns.wait_pod("deaf", "terminated", lambda p: container_status(p)["state"].get("terminated"))
    ns.kubectl("patch", "pod", "deaf", "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
    ns.wait_gone("deaf")
    terminated = container_status(ended)["state"]["terminated"]
    assert terminated["exitCode"] == 137
    # deletionTimestamp is when the grace ends (whole seconds): it was killed then, not before.
    times = (terminated["finishedAt"], ended["metadata"]["deletionTimestamp"])
    finished, deadline = (datetime.fromisoformat(text) for text in times)
    assert finished >= deadline - timedelta(seconds=1)


def test_b14_force_delete(ns):
    ns.apply(pod("p", container("trap '' TERM; while :; do sleep 0.1; done"), node="n1"))
    identifier = container_status(ns.wait_running("p"))["containerID"]
    ns.kubectl("delete", "pod", "p", "--grace-period=0", "--force")
    until("its process gone", lambda: ns.cluster.pid_of(identifier, node="n1") is None)


def test_b15_logs(ns):
    ns.apply(
        pod(
            "p",
            container("for i in 1 2 3; do echo out $i; echo err $i >&2; done; sleep 3600", name="a"),
            container("echo other; sleep 3600", name="b"),
        ),
        pod("crash", container("echo life $(date +%s%N); exit 1")),
    )
    ns.wait_running("p")
    assert sorted(ns.kubectl("logs", "p", "-c", "a").split("\n")) == sorted(
        ["", *(f"{s} {i}" for s in ("out", "err") for i in (1, 2, 3))]
    )
    assert "other" in ns.kubectl("logs", "p", "--all-containers")
    assert len(ns.kubectl("logs", "p", "-c", "a", "--tail=2").splitlines()) == 2
    assert len(ns.kubectl("logs", "p", "-c", "a", "--since=1h").splitlines()) == 6
    assert "T" in ns.kubectl("logs", "p", "-c", "a", "--timestamps", "--tail=1").split(" ")[0]
    ns.wait_pod("crash", "a restart", lambda p: container_status(p)["restartCount"] >= 1)
    assert ns.kubectl("logs", "crash", "--previous").startswith("life ")


def test_b15_follow_ends_with_the_container_and_misses_nothing(ns):
    ns.apply(
        pod("p", container("for i in $(seq 1 300); do echo line $i; sleep 0.01; done"), restartPolicy="Never")
    )
    ns.wait_pod("p", "started", lambda p: p["status"].get("phase") in ("Running", "Succeeded"))
    text = ns.kubectl("logs", "-f", "p")
    assert text.splitlines() == [f"line {i}" for i in range(1, 301)]


def test_exec_keeps_the_exit_code_and_the_streams_apart(ns):
    ns.apply(pod("p", container()))
    ns.wait_running("p")
    assert ns.run("exec", "p", "--", "sh", "-c", "exit 7")[0] == 7
    code, out, err = ns.run("exec", "p", "--", "sh", "-c", "echo to-out; echo to-err >&2")
    assert (code, out, err.strip()) == (0, "to-out\n", "to-err")
    assert ns.kubectl("exec", "-i", "p", "--", "cat", input="stdin arrives\n") == "stdin arrives\n"
    code, out, err = ns.run("exec", "p", "--", "no-such-program")
    assert code != 0
    assert "no-such-program" in err
    assert ns.kubectl("exec", "p", "--", "seq", "1", "100000").splitlines()[-1] == "100000"


def test_b18_run_and_remove_at_once(ns):
    code, out, errors = ns.run("run", "-i", "--rm", "--restart=Never", "t", "--image=busybox", "--", "env")
    assert code == 0, errors
    assert "KUBERNETES_SERVICE_HOST=10.96.0.1" in out.splitlines()
    assert not ns.pod("t")


def test_b19_a_forwarded_port_survives_a_refused_connection(ns, lab):
    ns.apply(pod("web", container(http_server("forwarded")), node="n1"))
    ns.wait_running("web")
    check_a_refused_connection_ends_nothing(lab, ns, "web", "forwarded")


def test_b20_the_nodes_own_paths_through_the_apis_proxy(ns):
    ns.apply(pod("p", container(), node="n1"))
    ns.wait_running("p")
    path = "/api/v1/nodes/n1/proxy"
    listed = json.loads(ns.cluster.kubectl("get", "--raw", f"{path}/pods"))["items"]
    assert "p" in {item["metadata"]["name"] for item in listed}
    labels = f'namespace="{ns.name}",pod="p"'
    until("figures", lambda: labels in ns.cluster.kubectl("get", "--raw", f"{path}/metrics/cadvisor"))


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_b20_the_apis_proxy_reaches_pods_of_every_node(ns, node):
    ns.apply(pod("web", container(http_server(f"from {node}")), node=node))
    ns.wait_running("web")
    path = f"/api/v1/namespaces/{ns.name}/pods/web:8080/proxy/"
    assert ns.cluster.kubectl("get", "--raw", path).strip() == f"from {node}"


def test_a_pod_the_node_cannot_run_says_why(ns):
    ns.apply(
        pod("nocmd", {"name": "c", "image": BUSYBOX, "command": ["no-such-program"]}),
        pod(
            "root",
            {
                "name": "c",
                "image": BUSYBOX,
                "command": ["true"],
                "securityContext": {"runAsNonRoot": True},
            },
        ),
    )

    def start_error(p):
        state = container_status(p)
        for part in (state.get("state", {}), state.get("lastState", {})):
            for kind in ("waiting", "terminated"):
                if "no-such-program" in part.get(kind, {}).get("message", ""):
                    return True
        return False

    ns.wait_pod("nocmd", "an error naming the program", start_error)
    refused = ns.wait_pod(
        "root", "CreateContainerConfigError", lambda p: waiting_reason(p) == "CreateContainerConfigError"
    )
    assert "non-root" in waiting_message(refused).lower() or "nonroot" in waiting_message(refused).lower()
