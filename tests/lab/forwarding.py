"""kubectl port-forward to a pod, for the tests of every kind of node."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from kit import Namespace

from deploy.labkit.lab import Lab


@contextmanager
def forwarded(lab: Lab, ns: Namespace, pod: str, *ports: str) -> Iterator[subprocess.Popen[str]]:
    """kubectl port-forward at work, on the control machine; ended at the end."""
    argv, env = lab.kubectl_command(["-n", ns.name, "port-forward", f"pod/{pod}", *ports])
    command = ["env", *(f"{key}={value}" for key, value in env.items()), *argv]
    forward = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert forward.stdout is not None
    try:
        assert "Forwarding" in forward.stdout.readline()
        yield forward
    finally:
        forward.terminate()
        forward.wait(60)
        forward.stdout.close()


def check_a_refused_connection_ends_nothing(lab: Lab, ns: Namespace, pod: str, answer: str) -> None:
    """The pod serves `answer` at port 8080, and nothing at port 9."""
    fetch = ("busybox", "wget", "-q", "-O-")
    with forwarded(lab, ns, pod, "18080:8080", "18081:9") as forward:
        for _ in range(2):
            assert ns.cluster.outside(*fetch, "http://127.0.0.1:18080/").strip() == answer
            refused = ns.cluster.outside("sh", "-c", f"{' '.join(fetch)} http://127.0.0.1:18081/ || echo no")
            assert refused.strip() == "no"
            assert forward.poll() is None
