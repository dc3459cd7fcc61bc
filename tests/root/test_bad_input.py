"""Wrong flags, unreadable files, missing rights: one line that names the thing, exit code not 0."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
HEAD = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
clusters: [{{name: k, cluster: {{server: "https://127.0.0.1:1", certificate-authority: {ca}}}}}]
users: [{{name: u, user: {{token: t}}}}]
contexts: [{{name: c, context: {{cluster: k, user: u}}}}]
"""


def said(*argv: str, uid: int | None = None) -> str:
    """What a program that must refuse says, in a network namespace of its own with nothing in it."""
    done = subprocess.run(
        ["unshare", "-n", str(BIN / argv[0]), *argv[1:]] if uid is None else [str(BIN / argv[0]), *argv[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        user=uid,
        check=False,
    )
    assert done.returncode not in (0, None), done.stdout
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("program", ["nodelet", "nodelet-cri"])
def test_unknown_flag(program):
    command = (program, "run") if program == "nodelet" else (program,)
    assert "--no-such-flag" in said(*command, "--no-such-flag=1")


def test_unknown_command():
    assert "dance" in said("nodelet", "dance")


@pytest.mark.parametrize("program", ["nodelet", "nodelet-cri"])
def test_not_root(program, tmp_path):
    if shutil.which(str(BIN / program)) is None or not os.access(BIN.parent, os.X_OK):
        pytest.fail(f"{program} is not installed beside {sys.executable}")
    command = (program, "run", "--kubeconfig", "/none") if program == "nodelet" else (program,)
    assert "root" in said(*command, uid=65534)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("{", "config.yaml"),
        (HEAD.replace("v1beta1", "v9"), "v9"),
        (
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nnoSuchField: 1\n",
            "noSuchField",
        ),
        (HEAD + "maxPods: many\n", "maxPods"),
        (HEAD + "nodeStatusUpdateFrequency: 1h1\n", "nodeStatusUpdateFrequency"),
    ],
)
def test_bad_kubelet_configuration(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    line = said("nodelet", "run", "--config", str(path), "--kubeconfig", str(tmp_path / "none"))
    assert words.lower() in line.lower()
    assert "config.yaml" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no such file"), ("][", "kubeconfig"), ("kind: Config\n", "current-context")],
)
def test_bad_kubeconfig(tmp_path, text, words):
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    line = said("nodelet", "run", "--kubeconfig", str(path), "--root-dir", str(tmp_path / "root"))
    assert words.lower() in line.lower()
    assert str(path) in line


def test_kubeconfig_with_a_missing_ca_file(tmp_path):
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG.format(ca=tmp_path / "no-ca.crt"))
    line = said("nodelet", "run", "--kubeconfig", str(path), "--root-dir", str(tmp_path / "root"))
    assert "no-ca.crt" in line


def test_socket_in_use(tmp_path):
    """Somebody else's listener is neither replaced nor removed."""
    place = tmp_path / "cri.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        line = said(
            "nodelet-cri",
            f"--listen=unix://{place}",
            f"--root={tmp_path}/data",
            f"--state={tmp_path}/state",
        )
    assert str(place) in line
    assert place.exists()


def test_cni_plugin_answers_errors_as_the_specification_asks(tmp_path):
    env = {"PATH": os.environ["PATH"], "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "../x", "CNI_IFNAME": "eth0"}
    done = subprocess.run(
        ["unshare", "-n", str(BIN / "nodelet-cni")],
        input="{}",
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert '"code"' in done.stdout
    assert "CNI_CONTAINERID" in done.stdout or "cniVersion" in done.stdout
