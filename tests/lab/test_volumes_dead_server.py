"""Row D09: a file server that dies hurts the pods on it and nobody else, and those can be deleted.

This kernel may have no NFS client, so the server is a FUSE one that takes requests and answers none: who asks
it sleeps in the kernel as with NFS, where SIGKILL does not reach.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from kit import container, pod, until

ROOT = Path(__file__).resolve().parents[2]
MOUNT = [{"name": "v", "mountPath": "/v"}]


@pytest.fixture
def server(ns):
    """A mount on n1: (its path, how to make its server dead)."""
    path = f"/tmp/{ns.name}"
    ns.cluster.node("n1", "mkdir", path)
    serving = subprocess.Popen(
        [*ns.cluster.lab.machine("n1").enter(), sys.executable, str(ROOT / "tests/root/fuse_kit.py"), path],
        env={"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def die():
        serving.stdin.write(b"x")
        serving.stdin.flush()
        assert serving.stdout.readline() == b"dead\n"

    with serving:
        try:
            until("its mount", lambda: f" {path} fuse " in ns.cluster.node("n1", "cat", "/proc/self/mounts"))
            yield path, die
        finally:
            serving.kill()  # which also wakes whoever still sleeps
    ns.cluster.node("n1", "umount", "-l", path)
    ns.cluster.node("n1", "rmdir", path)


def test_d09_a_dead_server_hurts_its_own_pods_only(ns, server):
    path, die = server
    volumes = [{"name": "v", "hostPath": {"path": path, "type": "Directory"}}]
    ns.apply(pod("before", container(volumeMounts=MOUNT), node="n1", volumes=volumes))
    ns.wait_running("before")
    die()
    ns.apply(
        *(pod(f"after-{n}", container(volumeMounts=MOUNT), node="n1", volumes=volumes) for n in range(8)),
        pod("other", container(), node="n1"),
    )
    ns.wait_running("other")
    assert ns.sh("other", "echo fine").strip() == "fine"
    until("FailedMount", lambda: "FailedMount" in ns.reasons("after-7"))
    message = next(e["message"] for e in ns.events("after-7") if e["reason"] == "FailedMount")
    assert f"hostPath {path}: fuse server does not answer" in message
    ns.kubectl("delete", "pod", "--all", "--grace-period=1", "--wait=false")
    for name in ("other", "before", *(f"after-{n}" for n in range(8))):
        ns.wait_gone(name)
