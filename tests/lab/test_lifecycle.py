"""Rows A07, A08, B12, B13, B30 to B34, B36: order, restarts, refusals and identities of pods."""

import json

from kit import BUSYBOX, container, container_status, pod, until, waiting_reason

from agent.api import quantity


def statuses(found, kind="containerStatuses"):
    return {s["name"]: s for s in found["status"].get(kind, ())}


def test_b12_b13_init_containers_then_a_sidecar_beside_the_app(ns):
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    inits = [
        container("until [ -e /v/go ]; do sleep 0.1; done; echo one >> /v/log", name="one", **mount),
        container("echo side >> /v/log; sleep 3600", name="side", restartPolicy="Always", **mount),
        container("echo two >> /v/log", name="two", **mount),
    ]
    inits[1]["command"][2] = "trap 'exit 0' TERM; echo side >> /v/log; sleep 3600 & wait"
    app = container("echo app >> /v/log; cat /v/log", **mount)
    spec = {"volumes": [{"name": "v", "emptyDir": {}}], "initContainers": inits, "restartPolicy": "Never"}
    ns.apply(pod("p", app, node="n1", **spec))
    waits = ns.wait_pod(
        "p",
        "its first init container running",
        lambda p: statuses(p, "initContainerStatuses").get("one", {}).get("state", {}).get("running"),
    )
    assert waits["status"]["phase"] == "Pending"
    assert waiting_reason(waits) == "PodInitializing"
    ns.sh("p", "touch /v/go", container="one")
    done = ns.wait_phase("p", "Succeeded")
    assert ns.kubectl("logs", "p", "-c", "c").split() == ["one", "side", "two", "app"]
    side = statuses(done, "initContainerStatuses")["side"]
    assert side["state"]["terminated"]["exitCode"] == 0


def test_one_exit_restarts_all_containers(ns):
    rule = {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}}
    watched = container(
        "[ -e /v/again ] && exec sleep 3600; touch /v/again; sleep 1; exit 88",
        name="watched",
        restartPolicy="Never",
        restartPolicyRules=[rule],
        volumeMounts=[{"name": "v", "mountPath": "/v"}],
    )
    volumes = [{"name": "v", "emptyDir": {}}]
    ns.apply(pod("p", container(), watched, node="n1", volumes=volumes, restartPolicy="Never"))
    found = ns.wait_pod(
        "p",
        "both restarted and running",
        lambda p: (
            all(s["restartCount"] == 1 and "running" in s["state"] for s in statuses(p).values())
            and len(statuses(p)) == 2
        ),
    )
    assert statuses(found)["watched"]["lastState"]["terminated"]["exitCode"] == 88
    assert found["status"]["phase"] == "Running"


def test_an_ephemeral_container_joins_its_target(ns):
    ns.apply(pod("p", container(), node="n1"))
    ns.wait_running("p")
    patch = {
        "spec": {
            "ephemeralContainers": [
                {
                    "name": "debug",
                    "image": BUSYBOX,
                    "command": ["sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; hostname"],
                    "targetContainerName": "c",
                }
            ]
        }
    }
    ns.kubectl("patch", "pod", "p", "--subresource", "ephemeralcontainers", "--patch", json.dumps(patch))
    ns.wait_pod(
        "p",
        "its ephemeral container ended",
        lambda p: (
            statuses(p, "ephemeralContainerStatuses").get("debug", {}).get("state", {}).get("terminated")
        ),
    )
    text = ns.kubectl("logs", "p", "-c", "debug")
    assert "sleep 3600" in text and text.rstrip().endswith("p")
    assert statuses(ns.pod("p"))["c"]["restartCount"] == 0


def test_a08_what_the_node_cannot_take_is_failed_with_the_reason(ns):
    port = {"ports": [{"containerPort": 80, "hostPort": 38080}]}
    ns.apply(pod("first", container(**port), nodeName="n1"))
    ns.wait_running("first")
    profile = {"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}
    cases = {
        "cpu": ("OutOfcpu", {}, {"resources": {"requests": {"cpu": "1000"}}}),
        "memory": ("OutOfmemory", {}, {"resources": {"requests": {"memory": "100Ti"}}}),
        "ports": ("NodePorts", {}, port),
        "labels": ("NodeAffinity", {"nodeSelector": {"no-such": "label"}}, {}),
        "sysctl": (
            "SysctlForbidden",
            {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "65536"}]}},
            {},
        ),
        "os": ("PodOSNotSupported", {"os": {"name": "windows"}}, {}),
    }
    if ns.cluster.node("n1", "sh", "-c", "cat /sys/module/apparmor/parameters/enabled || true") != "Y":
        cases["apparmor"] = ("AppArmor", profile, {})
    ns.apply(*(pod(name, container(**own), nodeName="n1", **spec) for name, (_, spec, own) in cases.items()))
    for name, (reason, _, _) in cases.items():
        status = ns.wait_phase(name, "Failed")["status"]
        assert (status["reason"], status["message"].startswith("Pod was rejected: ")) == (reason, True)
    assert "Node didn't have enough resource: cpu" in ns.pod("cpu")["status"]["message"]


def test_a_critical_pod_makes_room_for_itself(ns):
    node = json.loads(ns.kubectl("get", "node", "n1", "-o", "json"))
    share = int(float(quantity.parse(node["status"]["allocatable"]["cpu"])) * 600)
    asks = {"resources": {"requests": {"cpu": f"{share}m"}}}
    ns.apply(pod("victim", container(**asks), nodeName="n1"), pod("free", container(), nodeName="n1"))
    ns.wait_running("victim")
    ns.wait_running("free")
    ns.apply(
        pod("ordinary", container(**asks), nodeName="n1"),
        pod("critical", container(**asks), nodeName="n1", priorityClassName="system-node-critical"),
    )
    ended = ns.wait_phase("victim", "Failed")["status"]
    assert (ended["reason"], ended["message"]) == ("Preempting", "Preempted in order to admit critical pod")
    kinds = {c["type"]: c.get("reason") for c in ended["conditions"]}
    assert kinds["DisruptionTarget"] == "TerminationByKubelet"
    ns.wait_running("critical")
    assert ns.wait_phase("ordinary", "Failed")["status"]["reason"] == "OutOfcpu"
    assert ns.wait_running("free")["status"]["phase"] == "Running"


def test_a07_a_taint_ends_what_does_not_tolerate_it(ns):
    tolerant = [{"key": "nodelet.test/m", "operator": "Exists"}]
    ns.apply(
        pod("goes", container(), nodeName="n2"),
        pod("stays", container(), nodeName="n2", tolerations=tolerant),
    )
    ns.wait_running("goes")
    ns.wait_running("stays")
    ns.kubectl("taint", "node", "n2", "nodelet.test/m=true:NoExecute")
    try:
        ns.wait_gone("goes")
        assert ns.wait_running("stays")["status"]["phase"] == "Running"
    finally:
        ns.kubectl("taint", "node", "n2", "nodelet.test/m-")


def test_termination_messages_and_deadline(ns):
    loud = container("echo from the log; exit 3", terminationMessagePolicy="FallbackToLogsOnError")
    told = container("echo -n from the file > /dev/termination-log; exit 0")
    ns.apply(
        pod("loud", loud, restartPolicy="Never"),
        pod("told", told, restartPolicy="Never"),
        pod("late", container(), activeDeadlineSeconds=2),
    )
    messages = {"loud": "from the log", "told": "from the file"}
    for name, phase in (("loud", "Failed"), ("told", "Succeeded")):
        ended = container_status(ns.wait_phase(name, phase))["state"]["terminated"]
        assert ended["message"].strip() == messages[name]
    assert ns.wait_phase("late", "Failed")["status"]["reason"] == "DeadlineExceeded"


def test_b30_b31_b32_who_runs_and_what_it_may(ns):
    ids = {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000, "supplementalGroups": [4000]}
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    strict = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    ns.apply(
        pod(
            "ids",
            container(**mount, securityContext=strict),
            container(name="other", securityContext={"runAsUser": 2000}),
            node="n1",
            securityContext=ids,
            volumes=[{"name": "v", "emptyDir": {}}],
        ),
        pod(
            "caps",
            container(securityContext={"capabilities": {"add": ["NET_ADMIN"], "drop": ["CHOWN"]}}),
            container(name="all", securityContext={"privileged": True}),
            node="n1",
        ),
    )
    ns.wait_running("ids")
    assert ns.sh("ids", "id -u; id -g; id -G; stat -c %g /v", container="c").split("\n")[:4] == [
        "1000",
        "3000",
        "3000 2000 4000",
        "2000",
    ]
    assert ns.sh("ids", "id -u", container="other").strip() == "2000"
    proc = ns.sh(
        "ids", "grep -E 'NoNewPrivs|CapEff|^Seccomp:' /proc/self/status; touch /x 2>&1 || true", container="c"
    )
    facts = dict(line.split(":\t") for line in proc.splitlines() if ":\t" in line)
    assert (facts["NoNewPrivs"], facts["Seccomp"], int(facts["CapEff"], 16)) == ("1", "2", 0)
    assert "Read-only file system" in proc
    ns.wait_running("caps")
    capabilities = int(ns.sh("caps", "grep CapEff /proc/self/status", container="c").split()[1], 16)
    assert capabilities & 1 << 12 and not capabilities & 1  # CAP_NET_ADMIN, CAP_CHOWN
    assert "not permitted" in ns.sh("caps", "touch /f; chown 1 /f 2>&1 || true", container="c")
    assert int(ns.sh("caps", "ls /dev | wc -l", container="all")) > 20


def test_b33_the_nodes_own_namespaces(ns):
    ns.apply(pod("p", container(), node="n1", hostNetwork=True, hostPID=True, hostIPC=True))
    status = ns.wait_running("p")["status"]
    assert status["podIP"] == status["hostIP"]
    inside = ns.sh("p", "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc").split()
    outside = [ns.cluster.node("n1", "readlink", f"/proc/self/ns/{kind}").strip() for kind in ("net", "ipc")]
    assert inside == outside
    assert "nodelet" in ns.sh("p", "ps")


def test_names_and_resolver_of_a_pod(ns):
    config = {
        "nameservers": ["192.0.2.53"],
        "searches": ["own.example"],
        "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
    }
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "sub"}}
    service["spec"] = {"clusterIP": "None", "selector": {"app": "none"}, "ports": [{"port": 1}]}
    ns.apply(
        service,
        pod("none", container(), node="n1", dnsPolicy="None", dnsConfig=config),
        pod("first", container(), node="n1", dnsConfig=config),
        pod("fqdn", container(), node="n1", hostname="h", subdomain="sub", setHostnameAsFQDN=True),
        pod("over", container(), node="n1", hostnameOverride="some.other.name"),
    )
    ns.wait_running("none")
    lines = ns.sh("none", "cat /etc/resolv.conf").splitlines()
    assert lines == ["search own.example", "nameserver 192.0.2.53", "options ndots:2 edns0"]
    ns.wait_running("first")
    text = ns.sh("first", "cat /etc/resolv.conf")
    assert text.count("nameserver") == 2 and f"search {ns.name}.svc.cluster.local" in text
    assert "own.example" in text and "ndots:2 edns0" in text
    ns.wait_running("fqdn")
    assert ns.sh("fqdn", "hostname").strip() == f"h.sub.{ns.name}.svc.cluster.local"
    ns.wait_running("over")
    assert ns.sh("over", "hostname").strip() == "some.other.name"


def test_b34_jobs_and_b36_a_stateful_set(ns):
    template = {"spec": {"containers": [container("echo $JOB_COMPLETION_INDEX")], "restartPolicy": "Never"}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}}
    job["spec"] = {"completions": 6, "parallelism": 3, "completionMode": "Indexed", "template": template}
    app = {"matchLabels": {"app": "sts"}}
    sts = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "sts"}}
    sts["spec"] = {
        "serviceName": "sts",
        "replicas": 2,
        "selector": app,
        "template": {"metadata": {"labels": {"app": "sts"}}, "spec": {"containers": [container()]}},
    }
    ns.apply(job, sts)
    until("the job's six completions", lambda: ns.get("job", "job").get("status", {}).get("succeeded") == 6)
    names = ns.kubectl("get", "pods", "-l", "job-name=job", "-o", "name").split()
    assert sorted(ns.kubectl("logs", name).strip() for name in names) == [str(n) for n in range(6)]
    ns.wait_running("sts-1")
    created = [ns.pod(f"sts-{n}")["metadata"]["creationTimestamp"] for n in range(2)]
    assert created == sorted(created)
    before = ns.pod("sts-0")["metadata"]["uid"]
    ns.kubectl("delete", "pod", "sts-0")
    ns.wait_pod("sts-0", "a new one", lambda p: p["metadata"]["uid"] != before)
    ns.wait_running("sts-0")
    assert ns.sh("sts-0", "hostname").strip() == "sts-0"
