"""The lab itself: it comes up, answers, comes up again after a crash, and goes without a trace."""

import json
import subprocess
from pathlib import Path

from kit import until

from deploy.labkit import leaks
from deploy.labkit.__main__ import APP_NODE_PORT, ask
from deploy.labkit.lab import Lab
from deploy.labkit.layout import CONTROL, DNS_ADDRESS, SWITCH, Layout

COMMAND = Path(__file__).parents[2] / "deploy" / "lab"


def ready_nodes(cluster):
    found = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]
    return {
        node["metadata"]["name"]
        for node in found
        if any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])
    }


def test_nodes_are_ready_and_are_nodelets(cluster):
    assert ready_nodes(cluster) >= {"n1", "n2"}
    node = json.loads(cluster.kubectl("get", "node", "n1", "-o", "json"))
    assert "nodelet" in node["status"]["nodeInfo"]["kubeletVersion"]
    assert node["status"]["nodeInfo"]["containerRuntimeVersion"].startswith("nodelet-cri://")


def test_the_sample_app_answers_from_both_nodes(lab, cluster):
    address = cluster.kubectl("get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}")
    for machine, target in [("n1", (address, 80)), (SWITCH, ("10.199.0.12", APP_NODE_PORT))]:
        answers = [ask(lab, machine, target) for _ in range(20)]
        assert all(answer.startswith("hello from hello-") for answer in answers)
        assert {answer.rpartition(" ")[2] for answer in answers} == {"n1", "n2"}


def test_dns_answers_in_pods(cluster):
    answer = cluster.kubectl(
        "exec", "deployment/hello", "--", "nslookup", "kubernetes.default.svc.cluster.local"
    )
    assert DNS_ADDRESS in answer
    assert "10.96.0.1" in answer.replace(DNS_ADDRESS, "")


def test_up_again_and_up_after_a_crash(lab):
    pids = {name: lab.pid("n1", name) for name in ("nodelet", "nodelet-cri")}
    lab.up(count=2)
    assert {name: lab.pid("n1", name) for name in pids} == pids
    for machine, program in [("n1", "nodelet"), (CONTROL, "etcd"), (CONTROL, "kube-apiserver")]:
        lab.kill(machine, program)
    lab.up(count=2)
    assert lab.pid("n1", "nodelet") != pids["nodelet"]
    assert lab.pid("n1", "nodelet-cri") == pids["nodelet-cri"]


def test_a_machine_that_died_comes_back(lab, cluster):
    lab.kill("n2", "machine")
    lab.up(count=2)
    assert "n2" in ready_nodes(cluster)

    def answers():
        return ask(lab, SWITCH, ("10.199.0.12", APP_NODE_PORT))

    until("the app behind the new machine", answers)


def test_wrong_words_are_answered_in_one_line():
    for words in (["fly"], ["up", "--fast"], ["--name", "No!", "up"], ["node", "add", "switch"]):
        done = subprocess.run([COMMAND, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_second_lab_beside_the_first_leaves_nothing():
    second = Lab(Layout(name="test2"))
    before = leaks.take(second.layout)
    second.up(count=0, app=False)
    assert len(leaks.take(second.layout).processes) > 4
    second.down()
    assert leaks.difference(before, leaks.take(second.layout)) == []
    second.down()
