"""Rows D01, D02, D03, D04: emptyDir, hostPath, configMap and secret volumes."""

import pytest
from kit import config_map, container, pod, secret, until


def test_d01_empty_dir_is_shared_survives_a_restart_and_goes_with_the_pod(ns):
    mount = [{"name": "v", "mountPath": "/v"}, {"name": "m", "mountPath": "/m"}]
    ns.apply(
        pod(
            "p",
            container("echo hello > /v/from-a; sleep 3600", name="a", volumeMounts=mount),
            container("sleep 3600", name="b", volumeMounts=mount),
            node="n1",
            volumes=[
                {"name": "v", "emptyDir": {}},
                {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
            ],
        )
    )
    found = ns.wait_running("p")
    assert ns.sh("p", "cat /v/from-a", container="b").strip() == "hello"
    assert "tmpfs" in ns.sh("p", "grep ' /m ' /proc/mounts", container="a")
    fill = "dd if=/dev/zero of=/m/f bs=1M count=32 2>&1"
    assert "No space" in ns.sh("p", fill, container="a", check=False)
    ns.sh("p", "echo more > /v/from-b", container="b")
    identifiers = {c["name"]: c["containerID"] for c in found["status"]["containerStatuses"]}
    ns.cluster.node("n1", "kill", "-9", str(ns.cluster.pid_of(identifiers["b"], node="n1")))
    ns.wait_pod("p", "b restarted", lambda p: p["status"]["containerStatuses"][1]["restartCount"] == 1)
    ns.wait_running("p")
    assert ns.sh("p", "cat /v/from-b", container="b").strip() == "more"
    folder = f"/var/lib/kubelet/pods/{found['metadata']['uid']}"
    assert ns.cluster.node("n1", "ls", folder)
    ns.kubectl("delete", "pod", "p", "--grace-period=1")
    until("the pod's folder gone", lambda: not ns.cluster.node("n1", "ls", folder, check=False).strip())
    assert folder not in ns.cluster.node("n1", "cat", "/proc/self/mounts")


HOST_PATHS = [
    ("Directory", "mkdir -p {0}", True),
    ("Directory", "touch {0}", False),
    ("DirectoryOrCreate", "true", True),
    ("File", "touch {0}", True),
    ("File", "mkdir -p {0}", False),
    ("FileOrCreate", "true", True),
    ("Socket", "touch {0}", False),
    ("Socket", "exec 3<>/dev/null; python3 -c 'import socket; socket.socket(1).bind(\"{0}\")'", True),
    ("BlockDevice", "mknod {0} b 7 200", True),
    ("CharDevice", "mknod {0} c 1 3", True),
    ("CharDevice", "touch {0}", False),
    ("BlockDevice", "touch {0}", False),
    ("", "mkdir -p {0}", True),
]


def test_d02_host_path_types(ns):
    pods = []
    for number, (kind, make, _) in enumerate(HOST_PATHS):
        path = f"/tmp/{ns.name}-{number}"
        ns.cluster.node("n1", "sh", "-c", make.format(path))
        volume = {"name": "v", "hostPath": {"path": path, "type": kind}}
        box = container("ls -ld /v", volumeMounts=[{"name": "v", "mountPath": "/v"}])
        pods.append(pod(f"p{number}", box, node="n1", volumes=[volume], restartPolicy="Never"))
    ns.apply(*pods)
    for number, (kind, make, works) in enumerate(HOST_PATHS):
        if works:
            ns.wait_phase(f"p{number}", "Succeeded")
            continue
        until(f"FailedMount for {kind} after {make}", lambda n=number: "FailedMount" in ns.reasons(f"p{n}"))
        message = next(e["message"] for e in ns.events(f"p{number}") if e["reason"] == "FailedMount")
        assert f"/tmp/{ns.name}-{number}" in message
    made = ns.cluster.node("n1", "stat", "-c", "%a %F", f"/tmp/{ns.name}-2").strip()
    assert made == "755 directory"


def test_d03_config_map_volume(ns):
    ns.apply(
        config_map("multiple", **{"index.html": "<h1>success</h1>", "second": "2"}),
        pod(
            "web",
            {
                "name": "c",
                "image": "nginx",
                "volumeMounts": [{"name": "v", "mountPath": "/usr/share/nginx/html"}],
            },
            node="n1",
            volumes=[{"name": "v", "configMap": {"name": "multiple"}}],
        ),
        pod(
            "items",
            container(volumeMounts=[{"name": "v", "mountPath": "/v"}]),
            volumes=[
                {
                    "name": "v",
                    "configMap": {
                        "name": "multiple",
                        "items": [{"key": "second", "path": "deep/er/file", "mode": 0o400}],
                    },
                }
            ],
        ),
    )
    address = ns.wait_running("web")["status"]["podIP"]
    assert "success" in ns.cluster.node("n1", "busybox", "wget", "-qO-", f"http://{address}/index.html")
    ns.wait_running("items")
    assert ns.sh("items", "cat /v/deep/er/file") == "2"
    assert ns.sh("items", "stat -Lc %a /v/deep/er/file").strip() == "400"
    assert ns.sh("items", "ls /v").split() == ["deep"]
    assert "..data" in ns.sh("items", "readlink /v/deep")


def test_d04_secret_volume_lives_in_memory_only(ns):
    ns.apply(
        secret("s", username="admin-canary", password="x"),
        pod(
            "p",
            container(volumeMounts=[{"name": "v", "mountPath": "/etc/my-secrets", "readOnly": True}]),
            node="n1",
            volumes=[{"name": "v", "secret": {"secretName": "s", "defaultMode": 0o440}}],
        ),
    )
    found = ns.wait_running("p")
    assert ns.sh("p", "cat /etc/my-secrets/username") == "admin-canary"
    assert ns.sh("p", "stat -Lc %a /etc/my-secrets/username").strip() == "440"
    assert "tmpfs" in ns.sh("p", "grep my-secrets /proc/mounts")
    assert ns.run("exec", "p", "--", "touch", "/etc/my-secrets/x")[0] != 0
    folder = f"/var/lib/kubelet/pods/{found['metadata']['uid']}/volumes/kubernetes.io~secret/v"
    assert "tmpfs" in ns.cluster.node("n1", "stat", "-f", "-c", "%T", folder)


@pytest.mark.parametrize("kind", ["configMap", "secret"])
def test_a_missing_source_is_named_and_waited_for(ns, kind):
    source = {"name": "late"} if kind == "configMap" else {"secretName": "late"}
    ns.apply(
        pod(
            "p",
            container(volumeMounts=[{"name": "v", "mountPath": "/v"}]),
            volumes=[{"name": "v", kind: source}],
        )
    )
    until("FailedMount", lambda: "FailedMount" in ns.reasons("p"))
    message = next(e["message"] for e in ns.events("p") if e["reason"] == "FailedMount")
    assert f'{kind.lower()} "late" not found' in message
    ns.apply(config_map("late", k="v") if kind == "configMap" else secret("late", k="v"))
    ns.wait_running("p")
    assert ns.sh("p", "cat /v/k") == "v"
