"""An unmodified kubelet and kube-proxy on nodelet-cri and nodelet-cni: row set B with nothing of our agent.

The node is one more of the same lab. What is asked of it is what only the runtime can get wrong; kubelet's
own work is taken for granted.
"""

from __future__ import annotations

import hashlib
import json

import pytest
from forwarding import check_a_refused_connection_ends_nothing
from kit import config_map, container, container_status, http_server, is_ready, pod, secret, until

from deploy.labkit import nodes

NODE = "k1"
TOLERATIONS = [{"key": "lab/stock", "operator": "Exists"}]


@pytest.fixture(scope="module", autouse=True)
def kubelet_node(lab):
    """The node, for the tests of this file."""
    with lab.locked():
        lab.add_node(NODE, kind="kubelet")
    yield
    with lab.locked():
        lab.remove_node(NODE)


def here(name, *containers, **spec):
    """A pod on that node."""
    return pod(name, *containers, node=NODE, tolerations=TOLERATIONS, **spec)


def test_the_node_is_a_stock_one(cluster):
    info = json.loads(cluster.kubectl("get", "node", NODE, "-o", "json"))["status"]["nodeInfo"]
    assert info["containerRuntimeVersion"].startswith("nodelet-cri://")
    assert "nodelet" not in info["kubeletVersion"]


def test_volumes_of_all_kinds(ns):
    volumes = {
        "empty": {"emptyDir": {}},
        "memory": {"emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
        "host": {"hostPath": {"path": "/var/lib/kubelet/shared", "type": "DirectoryOrCreate"}},
        "config": {"configMap": {"name": "words"}},
        "secret": {"secret": {"secretName": "hidden", "defaultMode": 0o400}},
        "downward": {
            "downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}
        },
        "token": {"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
    }
    mounts = [{"name": name, "mountPath": f"/{name}"} for name in volumes]
    mounts.append({"name": "config", "mountPath": "/one", "subPath": "greeting"})
    ns.apply(
        config_map("words", greeting="hello"),
        secret("hidden", key="s3cret"),
        here(
            "volumes",
            container(name="a", volumeMounts=mounts),
            container(name="b", volumeMounts=mounts[:3]),
            securityContext={"fsGroup": 4321},
            volumes=[{"name": name, **source} for name, source in volumes.items()],
        ),
    )
    ns.wait_running("volumes")
    ns.sh("volumes", "echo x > /empty/f; echo y > /memory/f; echo z > /host/f", container="a")
    words = ns.sh("volumes", "cat /config/greeting /one /secret/key /downward/name", container="a")
    assert words == "hellohellos3cretvolumes"
    assert ns.sh("volumes", "cat /token/token", container="a").count(".") == 2, "a signed token"
    assert ns.sh("volumes", "cat /empty/f /memory/f /host/f", container="b").split() == ["x", "y", "z"]
    assert ns.sh("volumes", "stat -c %g /empty", container="a").strip() == "4321"
    assert "size=8192k" in ns.sh("volumes", "grep ' /memory ' /proc/mounts", container="a")
    refused = ns.sh("volumes", "touch /config/x 2>&1; true", container="a")
    assert "Read-only file system" in refused


def test_identity_resources_and_oom(ns, cluster):
    ns.apply(
        here(
            "id",
            container(
                resources={"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "memory": "32Mi"}},
                securityContext={
                    "runAsUser": 1000,
                    "runAsGroup": 3000,
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
            ),
        ),
        here(
            "oom",
            container("tail /dev/zero", resources={"limits": {"memory": "16Mi"}}),
            restartPolicy="Never",
        ),
    )
    ns.wait_running("id")
    assert ns.sh("id", "id -u; id -g; touch /x 2>&1; true").split()[:2] == ["1000", "3000"]
    status = dict(
        line.split(":\t", 1) for line in ns.sh("id", "cat /proc/self/status").splitlines() if ":\t" in line
    )
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapBnd"], 16)) == ("1", "2", 0)
    ended = ns.wait_phase("oom", "Failed")
    how = container_status(ended)["state"]["terminated"]
    assert (how["reason"], how["exitCode"]) == ("OOMKilled", 137)


def test_probes_restart_and_hold_back(ns):
    live = {"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 1, "failureThreshold": 1}
    web = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    ns.apply(
        here("live", container("touch /tmp/ok; exec sleep 3600", livenessProbe=live)),
        here("web", container(http_server("ready"), readinessProbe=web, startupProbe=web)),
        here("shut", container(readinessProbe={"tcpSocket": {"port": 81}, "periodSeconds": 1})),
    )
    ns.wait_running("web")
    ns.wait_running("live")
    ns.sh("live", "rm /tmp/ok")
    ns.wait_pod("live", "restarted", lambda found: container_status(found).get("restartCount", 0) >= 1)
    assert {"Unhealthy", "Killing"} <= ns.reasons("live")
    assert container_status(ns.pod("shut")).get("started") and not is_ready(ns.pod("shut"))


def test_exec_attach_logs(ns):
    script = "for i in 1 2 3; do echo line $i; done; while read word; do echo got $word; done"
    ns.apply(here("talk", container(script, stdin=True, stdinOnce=True), restartPolicy="Never"))
    ns.wait_running("talk")
    assert ns.run("exec", "talk", "--", "sh", "-c", "exit 7")[0] == 7
    numbers = ns.sh("talk", "seq 1 200000")
    assert numbers.split() == [str(number) for number in range(1, 200001)]
    data = "".join(f"{number:09}\n" for number in range(200000))
    digest = ns.kubectl("exec", "-i", "talk", "--", "sha256sum", input=data).split()[0]
    assert digest == hashlib.sha256(data.encode()).hexdigest()
    ns.kubectl("attach", "-i", "talk", input="hello\n")  # its end is the end of the container's input
    ns.wait_phase("talk", "Succeeded")
    assert ns.kubectl("logs", "talk").splitlines() == ["line 1", "line 2", "line 3", "got hello"]


def test_port_forward_survives_a_refused_connection(ns, lab):
    ns.apply(here("web", container(http_server("forwarded"))))
    ns.wait_running("web")
    check_a_refused_connection_ends_nothing(lab, ns, "web", "forwarded")


def test_figures_that_metrics_server_and_the_kubelet_need(ns, cluster):
    ns.apply(here("busy", container("while true; do :; done", resources={"limits": {"cpu": "100m"}})))
    ns.wait_running("busy")

    def resource():
        text = cluster.kubectl("get", "--raw", f"/api/v1/nodes/{NODE}/proxy/metrics/resource")
        lines = [line for line in text.splitlines() if f'namespace="{ns.name}"' in line]
        names = {line.partition("{")[0] for line in lines if float(line.split()[1]) > 0}
        return {"container_cpu_usage_seconds_total", "container_memory_working_set_bytes"} <= names

    until("figures of the pod", resource)

    def summary():
        found = json.loads(cluster.kubectl("get", "--raw", f"/api/v1/nodes/{NODE}/proxy/stats/summary"))
        pods = [item for item in found["pods"] if item["podRef"]["namespace"] == ns.name]
        return pods and pods[0]["containers"][0].get("cpu", {}).get("usageCoreNanoSeconds")

    until("its summary", summary)


def test_a_restart_of_the_runtime_is_not_noticed(ns, cluster, lab):
    ns.apply(here("stays", container()))
    before = container_status(ns.wait_running("stays"))
    lab.kill(NODE, "nodelet-cri")
    lab.start(NODE, "nodelet-cri")
    until("exec works again", lambda: ns.run("exec", "stays", "--", "true")[0] == 0)
    after = container_status(ns.pod("stays"))
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)


def test_deleted_pods_leave_nothing(ns, lab):
    ns.apply(here("gone", container(), container("sleep 3600", name="second")))
    ns.wait_running("gone")
    ns.kubectl("delete", "pod", "gone", "--wait=false")
    ns.wait_gone("gone")
    program = str(nodes.program("nodelet-cri"))
    until("no sandbox of it", lambda: ns.name not in lab.shell(NODE, program, "ps"))
