"""Fields of a PodSpec and what they do on the node, one short test each."""

import json

from kit import container, container_status, pod, until


def test_host_users_false_gives_each_pod_ids_of_its_own(ns):
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    volumes = [{"name": "v", "emptyDir": {}}]
    for name in ("a", "b"):
        ns.apply(pod(name, container(**mount), node="n1", hostUsers=False, volumes=volumes))
    firsts = set()
    for name in ("a", "b"):
        ns.wait_running(name)
        inside, outside, length = ns.sh(name, "cat /proc/self/uid_map").split()
        assert (inside, length) == ("0", "65536")
        firsts.add(int(outside))
        assert ns.sh(name, "id -u; touch /v/f && stat -c %u /v/f /etc/hosts").split() == ["0", "0", "0"]
    assert len(firsts) == 2 and min(firsts) >= 65536
    with ns.cluster.killed("n1", "nodelet"):
        pass
    ns.apply(pod("c", container(), node="n1", hostUsers=False))
    ns.wait_running("c")
    assert int(ns.sh("c", "cat /proc/self/uid_map").split()[1]) not in firsts


def test_a_runtime_class_that_is_not_there_is_named_and_one_that_is_runs(ns):
    name = f"class-{ns.name}"
    handlers = json.loads(ns.kubectl("get", "node", "n1", "-o", "json"))["status"].get("runtimeHandlers", ())
    spec = pod("p", container(), nodeName="n1", runtimeClassName=name)
    made = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": name},
        "handler": next((h["name"] for h in handlers if h.get("name")), "no-such-handler"),
        "overhead": {"podFixed": {"cpu": "10m", "memory": "8Mi"}},
    }
    ns.apply(made)
    try:
        ns.apply(spec)
        if made["handler"] == "no-such-handler":
            until(
                "the runtime's refusal",
                lambda: any("no-such-handler" in e["message"] for e in ns.events("p")),
            )
        else:
            assert ns.wait_running("p")["spec"]["overhead"] == {"cpu": "10m", "memory": "8Mi"}
    finally:
        ns.kubectl("delete", "runtimeclass", name)


def test_the_status_tells_whose_the_first_process_is(ns):
    ids = {"runAsUser": 1000, "runAsGroup": 3000}
    ns.apply(pod("p", container(securityContext=ids), node="n1"))
    status = container_status(ns.wait_running("p"))
    assert status["user"]["linux"] == {"uid": 1000, "gid": 3000, "supplementalGroups": [3000]}
