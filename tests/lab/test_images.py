"""Rows B05, B06, B08, B09: what an image says of itself, when it is pulled, and who may use it."""

import base64
import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
from derived import derive
from kit import container, container_status, pod, until, waiting_message, waiting_reason

from deploy.labkit import processes
from deploy.labkit.layout import CONTROL, CONTROL_ADDRESS
from deploy.labkit.oci import build_image
from deploy.labkit.services import Service, ensure_service

PRIVATE, SLOW = f"{CONTROL_ADDRESS}:5001", f"{CONTROL_ADDRESS}:5002"


def test_b05_an_image_says_who_where_and_how(ns, lab):
    derive(
        lab,
        f"docker.io/test/{ns.name}",
        User="1000",
        WorkingDir="/made/here",
        Env=["PATH=/bin", "COLOR=blue", "OTHER=image"],
        Entrypoint=["sh", "-c", 'trap "echo USR1; exit 0" USR1; echo $0; while :; do sleep 0.1; done'],
        Cmd=["from-cmd"],
        Volumes={"/data": {}},
        StopSignal="SIGUSR1",
    )
    image = {"name": "c", "image": f"test/{ns.name}:1", "env": [{"name": "OTHER", "value": "pod"}]}
    ns.apply(pod("p", image, node="n1"), pod("args", {**image, "args": ["from-pod"]}, node="n1"))
    ns.wait_running("p")
    ns.wait_running("args")
    assert ns.sh("p", "id -u; pwd; echo $COLOR $OTHER").split() == ["1000", "/made/here", "blue", "pod"]
    assert " /data " in ns.sh("p", "cat /proc/mounts")
    assert (ns.kubectl("logs", "p"), ns.kubectl("logs", "args")) == ("from-cmd\n", "from-pod\n")
    argv, env = lab.kubectl_command(["-n", ns.name, "logs", "-f", "p"])
    pipe = {"stdout": subprocess.PIPE, "text": True, "env": {**os.environ, **env}}
    with subprocess.Popen(argv, **pipe) as follow:
        assert follow.stdout.readline() == "from-cmd\n"
        ns.kubectl("delete", "pod", "p")
        assert follow.communicate(timeout=60)[0] == "USR1\n"


def test_b06_policies_and_a_tag_that_moves(ns, lab):
    name = f"docker.io/test/{ns.name}"
    one = derive(lab, name, "moves", Env=["N=1"])
    image = {"image": f"test/{ns.name}:moves"}
    always = container("echo $N; sleep 3600") | image | {"imagePullPolicy": "Always"}
    cached = always | {"imagePullPolicy": "IfNotPresent"}
    never = container() | {"image": "test/no-such-image:1", "imagePullPolicy": "Never"}
    ns.apply(pod("never", never, node="n1"), pod("first", always, node="n1"))
    first = container_status(ns.wait_running("first"))
    assert first["imageID"].endswith(one)
    blocked = ns.wait_pod("never", "refused", lambda p: waiting_reason(p) == "ErrImageNeverPull")
    assert "not present with pull policy of Never" in waiting_message(blocked)
    two = derive(lab, name, "moves", Env=["N=2"])
    ns.apply(pod("cached", cached, node="n1"), pod("pinned", cached | pinned(ns, one), node="n1"))
    assert container_status(ns.wait_running("cached"))["imageID"].endswith(one)
    ns.apply(pod("again", always, node="n1"))
    assert container_status(ns.wait_running("again"))["imageID"].endswith(two)
    assert ns.kubectl("logs", "again") == "2\n"
    assert container_status(ns.wait_running("pinned"))["imageID"].endswith(one)


def pinned(ns, digest):
    return {"image": f"test/{ns.name}@{digest}"}


@contextmanager
def registry(lab, address, *argv):
    """A program on the control machine that serves images at an address, which n1 knows to be plain HTTP."""
    checkout = (("PYTHONPATH", str(lab.layout.checkout)),)
    service = Service(name="registry-of-a-test", argv=(sys.executable, "-P", *argv), env=checkout)
    hosts = lab.layout.machine("n1") / f"etc/nodelet/registries.d/{address}"
    hosts.mkdir()
    (hosts / "hosts.toml").write_text(f'server = "http://{address}"\n')
    ensure_service(lab.layout, lab.records, lab.machine(CONTROL), service)
    ask = ("busybox", "wget", "-q", "-O-", f"http://{address}/v2/")
    try:
        until("an answer of the registry", lambda: lab.shell(CONTROL, *ask, check=False))
        yield
    finally:
        processes.stop(lab.records.read(CONTROL, service.name))
        (hosts / "hosts.toml").unlink()
        hosts.rmdir()


@pytest.fixture
def private(lab):
    """A registry that wants an account for what is below private/."""
    words = ("--listen", PRIVATE, "--account=user:word", "--private=private/")
    with registry(lab, PRIVATE, "-m", "deploy.labkit.registry", "--root", str(lab.layout.registry), *words):
        yield PRIVATE


def pull_secret(name, user, word):
    auth = base64.b64encode(f"{user}:{word}".encode()).decode()
    text = json.dumps({"auths": {PRIVATE: {"auth": auth}}})
    body = {".dockerconfigjson": text}
    meta = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson"}
    return meta | {"metadata": {"name": name}, "stringData": body}


def test_b08_a_private_image_is_for_those_who_have_its_secret(ns, lab, private):
    derive(lab, f"private/{ns.name}")
    box = container() | {"image": f"{private}/private/{ns.name}:1"}
    ns.apply(pull_secret("right", "user", "word"), pull_secret("wrong", "user", "guess"))
    ns.apply(pod("none", box, node="n1"))
    refused = ns.wait_pod("none", "refused", lambda p: waiting_reason(p) == "ImagePullBackOff")
    assert "401" in waiting_message(refused) or "401" in json.dumps(ns.events("none"))
    ns.apply(pod("has", box, node="n1", imagePullSecrets=[{"name": "right"}]))
    ns.wait_running("has")
    # It is on the node now; who shows no credential that opened it may not have it all the same.
    cached = box | {"imagePullPolicy": "IfNotPresent"}
    ns.apply(
        pod("guesses", cached, node="n1", imagePullSecrets=[{"name": "wrong"}]),
        pod("never", box | {"imagePullPolicy": "Never"}, node="n1"),
        pod("shows", cached, node="n1", imagePullSecrets=[{"name": "right"}]),
    )
    ns.wait_running("shows")
    ns.wait_pod("guesses", "refused", lambda p: waiting_reason(p) in ("ErrImagePull", "ImagePullBackOff"))
    ns.wait_pod("never", "refused", lambda p: waiting_reason(p) == "ErrImageNeverPull")
    account = {"imagePullSecrets": [{"name": "right"}]}
    ns.kubectl("patch", "serviceaccount", "default", "-p", json.dumps(account))
    ns.apply(pod("by-account", cached, node="n1"))
    ns.wait_running("by-account")


def test_b09_an_image_from_a_file_runs_without_a_registry(ns, lab):
    derive(lab, f"docker.io/test/{ns.name}", Labels={"of": ns.name})
    name, program = f"test/{ns.name}:1", ns.cluster.program("nodelet-cri")
    shared = lab.layout.state / f"{ns.name}.tar"
    box = container() | {"image": name, "imagePullPolicy": "Never"}
    ns.apply(pod("waits", box, node="n2"))
    ns.wait_pod("waits", "refused", lambda p: waiting_reason(p) == "ErrImageNeverPull")
    try:
        ns.cluster.node("n1", program, "image", "pull", name)
        ns.cluster.node("n1", program, "image", "export", name, str(shared))
        ns.cluster.node("n2", program, "image", "import", str(shared))
    finally:
        shared.unlink(missing_ok=True)
    ns.wait_running("waits")


SLOW_REGISTRY = """
import pathlib, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from deploy.labkit.registry import RegistryStore

root, go, host, port = sys.argv[1:]
store = RegistryStore(root=pathlib.Path(root))

class Slow(BaseHTTPRequestHandler):
    def do_GET(self):
        name, _, which = self.path.removeprefix("/v2/").partition("?")[0].rpartition("/")
        name, _, kind = name.rpartition("/")
        digest, media = which, "application/octet-stream"
        if kind == "manifests":
            digest, media = store.resolve(name, which)
        data = store.blob_path(digest).read_bytes() if kind else b"{}"
        self.send_response(200)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:1 << 19])
            while len(data) > 1 << 19 and not pathlib.Path(go).exists():
                time.sleep(0.1)
            self.wfile.write(data[1 << 19:])

    do_HEAD = do_GET

ThreadingHTTPServer((host, int(port)), Slow).serve_forever()
"""


def test_how_far_a_pull_is_shows_in_the_waiting_message(ns, lab):
    build_image(lab.layout.registry, f"slow/{ns.name}", tags=["1"], files={"/data": os.urandom(1 << 20)})
    go = lab.layout.state / f"{ns.name}.go"
    address = SLOW.split(":")
    with registry(lab, SLOW, "-c", SLOW_REGISTRY, str(lab.layout.registry), str(go), *address):
        try:
            ns.apply(pod("p", container() | {"image": f"{SLOW}/slow/{ns.name}:1"}, node="n1"))
            ns.wait_pod("p", "half of it", lambda p: "0 of 1 layers, 0.5 of 1.0 MB" in waiting_message(p))
        finally:
            go.touch()
        until("the rest of it", lambda: "Pulled" in ns.reasons("p"))
    go.unlink()
