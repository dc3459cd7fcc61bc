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


def test_a_mount_is_read_only_all_the_way_down_where_the_pod_says_so(ns):
    path = f"/tmp/{ns.name}"
    ns.cluster.node("n1", "sh", "-c", f"mkdir -p {path}/below && mount -t tmpfs below {path}/below")
    plain = {"name": "v", "mountPath": "/plain", "readOnly": True}
    deep = {**plain, "mountPath": "/deep", "recursiveReadOnly": "Enabled"}
    try:
        volumes = [{"name": "v", "hostPath": {"path": path}}]
        ns.apply(pod("p", container(volumeMounts=[plain, deep]), node="n1", volumes=volumes))
        status = container_status(ns.wait_running("p"))
        told = {m["mountPath"]: m.get("recursiveReadOnly") for m in status["volumeMounts"]}
        assert (told["/plain"], told["/deep"]) == ("Disabled", "Enabled")
        ns.sh("p", "touch /plain/below/file")
        assert "Read-only" in ns.sh("p", "touch /deep/below/file 2>&1; touch /plain/file 2>&1", check=False)
        assert ns.sh("p", "touch /deep/below/other 2>/dev/null || ls /deep/below").split() == ["file"]
    finally:
        ns.kubectl("delete", "pods", "--all", "--grace-period=1")
        ns.cluster.node("n1", "umount", "-l", f"{path}/below")


def test_a_readiness_gate_is_waited_for(ns):
    ns.apply(pod("p", container(), node="n1", readinessGates=[{"conditionType": "test/gate"}]))
    waits = ns.wait_pod("p", "its containers ready", lambda p: condition(p, "ContainersReady") == "True")
    assert condition(waits, "Ready") == "False"
    gate = {"status": {"conditions": [{"type": "test/gate", "status": "True"}]}}
    ns.kubectl("patch", "pod", "p", "--subresource=status", "-p", json.dumps(gate))
    found = ns.wait_pod("p", "Ready", lambda p: condition(p, "Ready") == "True")
    assert condition(found, "test/gate") == "True"


def condition(found, kind):
    return next((c["status"] for c in found["status"].get("conditions", ()) if c["type"] == kind), None)


def test_b32_a_pod_that_keeps_to_the_restricted_standard_runs(ns):
    ns.kubectl("label", "namespace", ns.name, "pod-security.kubernetes.io/enforce=restricted")
    strict = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    code, _, errors = ns.run("run", "loose", "--image=busybox")
    assert code != 0 and "restricted" in errors
    ns.apply(pod("p", container(securityContext=strict), node="n1"))
    ns.wait_running("p")
    assert ns.sh("p", "id -u").strip() == "1000"


def test_b31_proc_is_whole_for_a_pod_that_asks_for_it_in_ids_of_its_own(ns):
    whole = {"securityContext": {"procMount": "Unmasked"}}
    ns.apply(
        pod("whole", container(**whole), node="n1", hostUsers=False), pod("masked", container(), node="n1")
    )
    ns.wait_running("whole")
    ns.wait_running("masked")
    below = "grep -c ' /proc/' /proc/mounts || true"
    assert ns.sh("whole", below).strip() == "0"
    assert int(ns.sh("masked", below)) > 3
