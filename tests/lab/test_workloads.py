"""Rows B34 to B37: what controllers do with pods - jobs, daemons, stateful sets, rolling updates."""

import json
import uuid

import pytest
from kit import Namespace, container, container_status, http_server, is_ready, pod, service, until

PROMPT = {"terminationGracePeriodSeconds": 3}


def workload(kind, name, *containers, labels=None, pod_spec=None, **spec):
    """A workload of apps/v1 over pods labelled app=<name>."""
    labels = {"app": name} | (labels or {})
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": list(containers), **PROMPT, **(pod_spec or {})},
            },
            **spec,
        },
    }


@pytest.fixture(scope="module", autouse=True)
def cron(cluster):
    """A cron job in a namespace of its own: it takes up to a minute to fire, so the other tests go first."""
    space = Namespace(cluster=cluster, name=f"cron-{uuid.uuid4().hex[:5]}")
    cluster.kubectl("create", "namespace", space.name)
    template = {"containers": [container("echo fired")], "restartPolicy": "Never"}
    job = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "cron"}}
    job["spec"] = {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec": template}}}}
    space.apply(job)
    yield space
    cluster.kubectl("delete", "namespace", space.name, "--wait=false")


def pods(ns, app):
    """The pods of a workload that are not ending, by name."""
    items = json.loads(ns.kubectl("get", "pods", "-l", f"app={app}", "-o", "json"))["items"]
    return {p["metadata"]["name"]: p for p in items if "deletionTimestamp" not in p["metadata"]}


def images(ns, app):
    return {name: p["spec"]["containers"][0]["image"] for name, p in pods(ns, app).items()}


def rolled_out(ns, what):
    ns.kubectl("rollout", "status", what, "--timeout=100s")


def test_b34_a_job_with_a_native_sidecar_completes_and_its_pods_keep_their_logs(ns):
    sidecar = container("echo beside; sleep 3600", name="side", restartPolicy="Always")
    sidecar["command"][2] = "trap 'exit 0' TERM; echo beside; sleep 3600 & wait"
    template = {"containers": [container("echo done")], "initContainers": [sidecar], "restartPolicy": "Never"}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}}
    job["spec"] = {"completions": 8, "parallelism": 2, "template": {"spec": template}}
    failing = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "failing"}}
    lost = {"containers": [container("exit 3")], "restartPolicy": "Never"}
    failing["spec"] = {"backoffLimit": 0, "template": {"spec": lost}}
    ns.apply(job, failing)
    until("8/8", lambda: ns.get("job", "job").get("status", {}).get("succeeded") == 8, timeout=120)
    names = ns.kubectl("get", "pods", "-l", "job-name=job", "-o", "name").split()
    for name in names:
        assert ns.kubectl("logs", name, "-c", "c") == "done\n"
        assert ns.kubectl("logs", name, "-c", "side") == "beside\n"
    ended = json.loads(ns.kubectl("get", "pods", "-l", "job-name=job", "-o", "json"))["items"]
    assert {p["status"]["phase"] for p in ended} == {"Succeeded"}
    until("the other job Failed", lambda: ns.get("job", "failing").get("status", {}).get("failed") == 1)


def test_b35_a_daemon_set_is_upgraded_node_by_node(ns):
    everywhere = [{"operator": "Exists"}]
    tail = container(
        "trap 'exit 0' TERM; tail -F /log/*/*/*.log & wait",
        volumeMounts=[LOGS],
        ports=[{"containerPort": 24224}],
    )
    tail["image"] = "busybox:1.28"
    spec = {"tolerations": everywhere, "volumes": [{"name": "v", "hostPath": {"path": "/var/log/pods"}}]}
    ns.apply(workload("DaemonSet", "fluentd", tail, pod_spec=spec))
    rolled_out(ns, "ds/fluentd")
    nodes = {p["spec"]["nodeName"] for p in pods(ns, "fluentd").values()}
    assert {"n1", "n2"} <= nodes
    before = images(ns, "fluentd")
    ns.kubectl("set", "image", "ds/fluentd", "c=busybox:1.36")
    rolled_out(ns, "ds/fluentd")
    after = images(ns, "fluentd")
    assert set(after.values()) == {"busybox:1.36"} and not before.keys() & after.keys()
    assert {p["spec"]["nodeName"] for p in pods(ns, "fluentd").values()} == nodes


LOGS = {"name": "v", "mountPath": "/log", "readOnly": True}


def test_b36_a_stateful_set_keeps_order_and_partition(ns):
    box = container("sleep 3600")
    box["image"] = "busybox:1.28"
    ns.apply(workload("StatefulSet", "sts", box, replicas=3, serviceName="sts"))
    rolled_out(ns, "sts/sts")
    born = [started(pods(ns, "sts")[f"sts-{n}"]) for n in range(3)]
    assert born == sorted(born)
    update = {"spec": {"updateStrategy": {"rollingUpdate": {"partition": 2}}}}
    ns.kubectl("patch", "sts", "sts", "-p", json.dumps(update))
    ns.kubectl("set", "image", "sts/sts", "c=busybox:1.36")
    rolled_out(ns, "sts/sts")
    old, new = "busybox:1.28", "busybox:1.36"
    assert images(ns, "sts") == {"sts-0": old, "sts-1": old, "sts-2": new}
    uids = {name: p["metadata"]["uid"] for name, p in pods(ns, "sts").items()}
    ns.kubectl("delete", "pod", "sts-1")
    again = ns.wait_pod("sts-1", "a new one", lambda p: p["metadata"]["uid"] != uids["sts-1"] and is_ready(p))
    assert again["spec"]["containers"][0]["image"] == old  # below the partition
    ns.kubectl("scale", "sts", "sts", "--replicas=1")
    until("the last two gone", lambda: set(pods(ns, "sts")) == {"sts-0"} and not ns.pod("sts-1"))
    assert pods(ns, "sts")["sts-0"]["metadata"]["uid"] == uids["sts-0"]


def started(found):
    return container_status(found)["state"]["running"]["startedAt"]


def server(answer):
    probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    stop = {"preStop": {"sleep": {"seconds": 2}}}
    return container(http_server(answer), readinessProbe=probe, lifecycle=stop)


LOAD = """
good=0 bad=0
trap 'echo "$good $bad"; exit 0' TERM
while :; do
    if wget -q -O- http://$WEB_SERVICE_HOST/ > /dev/null; then good=$((good + 1)); else bad=$((bad + 1)); fi
    echo "$good $bad" > /count
done
"""


def test_b37_a_rolling_update_under_load_loses_no_request_and_is_undone(ns):
    rolling = {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    ns.apply(
        service("web", "web"),
        workload("Deployment", "web", server("one"), replicas=2, minReadySeconds=1, strategy=rolling),
    )
    rolled_out(ns, "deploy/web")
    ns.apply(pod("load", container(LOAD), node="n1"), pod("far", container(LOAD), node="n2"))
    both = ("load", "far")
    for name in both:
        ns.wait_running(name)
    fetch = "wget -q -O- http://$WEB_SERVICE_HOST/"

    def counts():
        return [tuple(map(int, ns.sh(name, "cat /count", check=False).split() or (0, 0))) for name in both]

    until("requests from both", lambda: all(good > 10 for good, _ in counts()))
    change = {"spec": {"template": {"spec": {"containers": [server("two")]}}}}
    ns.kubectl("patch", "deploy", "web", "-p", json.dumps(change))
    rolled_out(ns, "deploy/web")
    assert ns.sh("load", fetch).strip() == "two"
    ns.kubectl("rollout", "undo", "deploy/web")
    rolled_out(ns, "deploy/web")
    until("the old answer again", lambda: {ns.sh("load", fetch).strip() for _ in range(4)} == {"one"})
    before = counts()
    until("requests after it", lambda: all(n[0] > o[0] for n, o in zip(counts(), before, strict=True)))
    assert [bad for _, bad in counts()] == [0, 0]


def test_b37_recreate_ends_all_before_the_first_new_one(ns):
    ns.apply(workload("Deployment", "web", container(), replicas=2, strategy={"type": "Recreate"}))
    rolled_out(ns, "deploy/web")
    old = pods(ns, "web")
    ns.kubectl("set", "env", "deploy/web", "A=B")
    rolled_out(ns, "deploy/web")
    new = pods(ns, "web")
    assert len(new) == 2 and not old.keys() & new.keys()
    assert not any(ns.pod(name) for name in old)
    ns.kubectl("scale", "deploy/web", "--replicas=0")
    until("none left", lambda: not pods(ns, "web"))


def test_b34_a_cron_job_fires(cron):
    def succeeded():
        jobs = json.loads(cron.kubectl("get", "jobs", "-o", "json"))["items"]
        return [job["metadata"]["name"] for job in jobs if job["status"].get("succeeded")]

    (first, *_) = until("a job that the cron job made, complete", succeeded, timeout=120)
    assert cron.kubectl("logs", f"job/{first}") == "fired\n"
