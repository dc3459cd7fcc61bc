"""Specs that the API takes and no node can run as they stand: each pod says why, and the others run.

What the API server refuses by itself (uids beyond 2^31, `..` in a subPath, names that are none) is not here;
manifests of files, which no server has looked at, are in tests/unit/test_pods_static.py.
"""

import json

import pytest
from kit import config_map, container, container_status, pod, until

LONG = "x" * (200 << 10)


def mounted(path, **fields):
    return {"volumeMounts": [{"name": "v", "mountPath": path, **fields}]}


def env(**values):
    return {"env": [{"name": name, "value": value} for name, value in values.items()]}


EMPTY = {"volumes": [{"name": "v", "emptyDir": {}}]}

REFUSED = {
    # name: (fields of the container, fields of the spec, words that tell why)
    "argument-too-long": (container() | {"args": [LONG]}, {}, "too long"),
    "nul-in-argument": (container() | {"args": ["a\0b"]}, {}, "NUL"),
    "nul-in-variable": (container(**env(A="a\0b")), {}, "NUL"),
    "empty-command": (container() | {"command": [""]}, {}, "command"),
    "no-such-program": (container() | {"command": ["/no/such\n\x1b[31mprogram"]}, {}, "program"),
    "directory-as-program": (container() | {"command": ["/etc"]}, {}, "/etc"),
    "workdir-with-dots": (container(workingDir="/proc/../made/here"), {}, "/proc/../made/here"),
    "workdir-is-a-file": (container(workingDir="/etc/passwd"), {}, "/etc/passwd"),
    "subpath-of-a-variable": (
        container(**mounted("/v", subPathExpr="$(UP)/etc"), **env(UP="../..")),
        EMPTY,
        "..",
    ),
    "subpath-of-no-variable": (container(**mounted("/v", subPathExpr="$(NONE)")), EMPTY, "NONE"),
    "mount-over-a-file": (container(**mounted("/etc/passwd/below")), EMPTY, "/etc/passwd"),
    "seccomp-missing": (
        container(securityContext={"seccompProfile": {"type": "Localhost", "localhostProfile": "no.json"}}),
        {},
        "no.json",
    ),
    "capability": (container(securityContext={"capabilities": {"add": ["NO_SUCH"]}}), {}, "NO_SUCH"),
    "post-start": (
        container(lifecycle={"postStart": {"exec": {"command": ["no-such-hook"]}}}),
        {},
        "no-such-hook",
    ),
    "sysctl-value": (
        container(),
        {
            "securityContext": {
                "sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1+kernel.core_pattern=x"}]
            }
        },
        "kernel.shm_rmid_forced",
    ),
    "too-little-memory": (container(resources={"limits": {"memory": "1"}}), {}, "memory"),
}

RUN = {
    "cyclic-variables": (container("echo $A$B; sleep 60", **env(A="$(B)", B="$(A)")), {}),
    "control-characters": (container(**env(A="one\ntwo\x1b]0;x\x07é\u202e")), {}),
    "a-thousand-variables": (container(**env(**{f"V{n}": "x" * 64 for n in range(1000)})), {}),
    "fifty-volumes": (
        container(volumeMounts=[{"name": f"v{n}", "mountPath": f"/v/{n}"} for n in range(50)]),
        {"volumes": [{"name": f"v{n}", "emptyDir": {}} for n in range(50)]},
    ),
    "subpath-dot": (container(**mounted("/v", subPath=".")), EMPTY),
    "a-fraction-of-a-core": (container(resources={"limits": {"cpu": "1m"}, "requests": {"cpu": "1m"}}), {}),
}


def complaints(ns, name):
    """Everything a user is told of a pod: its states' reasons and messages, and its events."""
    status = ns.pod(name).get("status", {})
    return json.dumps([status, [event["message"] for event in ns.events(name)]], ensure_ascii=False)


def test_what_cannot_run_says_why(ns):
    made = [
        pod(name, box, node="n1", restartPolicy="Never", **spec) for name, (box, spec, _) in REFUSED.items()
    ]
    ns.apply(*made)
    for name, (_, _, words) in REFUSED.items():
        until(f"{name}: a complaint with {words!r}", lambda n=name, w=words: w in complaints(ns, n))
        found = ns.pod(name)
        assert "running" not in container_status(found).get("state", {}), name
    ns.kubectl("delete", "pods", "--all", "--grace-period=1")


def test_what_looks_odd_runs_all_the_same(ns):
    ns.apply(*(pod(name, box, node="n1", **spec) for name, (box, spec) in RUN.items()))
    for name in RUN:
        assert container_status(ns.wait_running(name))["restartCount"] == 0
    assert ns.kubectl("logs", "cyclic-variables") == "$(B)$(B)\n"
    assert ns.sh("control-characters", 'printf %s "$A"') == "one\ntwo\x1b]0;x\x07é\u202e"
    assert ns.sh("a-thousand-variables", "env | grep -c ^V").strip() == "1000"


def test_a_probe_at_a_port_that_has_no_name_here_is_told(ns):
    probe = {"httpGet": {"path": "/", "port": "nameless"}, "periodSeconds": 1, "failureThreshold": 1}
    ns.apply(pod("p", container(readinessProbe=probe), node="n1"))
    until("the complaint", lambda: "nameless" in complaints(ns, "p") and "Unhealthy" in ns.reasons("p"))


@pytest.mark.parametrize("kind", ["", "FileOrCreate"])
def test_a_pipe_of_the_node_does_not_hang_its_pod(ns, kind):
    path = f"/tmp/{ns.name}"
    ns.cluster.node("n1", "mkfifo", path)
    source = {"volumes": [{"name": "v", "hostPath": {"path": path, "type": kind}}]}
    ns.apply(pod("p", container(**mounted("/v/pipe")), node="n1", **source))
    if kind:
        until("the refusal", lambda: "FailedMount" in ns.reasons("p") and path in complaints(ns, "p"))
    else:
        ns.wait_running("p")
        assert ns.sh("p", "test -p /v/pipe && echo pipe").strip() == "pipe"


def test_a_large_object_of_a_megabyte_is_mounted(ns):
    ns.apply(pod("p", container(**mounted("/v")), volumes=[{"name": "v", "configMap": {"name": "big"}}]))
    text = json.dumps(config_map("big", key="x" * (1000 << 10)))
    ns.kubectl("create", "-f", "-", input=text)
    ns.wait_running("p")
    assert ns.sh("p", "wc -c < /v/key").strip() == str(1000 << 10)
