"""Wrong flags, unreadable files, missing rights: one line that names the thing, exit code not 0."""

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from agent.server import certificates
from host.files import locked
from proto.cri import runtime_pb2
from proto.cri.runtime_pb2_grpc import RuntimeServiceStub

BIN = Path(sys.executable).parent
CHECKOUT = Path(__file__).parents[2]
HEAD = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
LO = "ip link set lo up"
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
clusters: [{{name: k, cluster: {{server: "https://127.0.0.1:{port}", certificate-authority: {ca}}}}}]
users: [{{name: u, user: {{token: t}}}}]
contexts: [{{name: c, context: {{cluster: k, user: u}}}}]
"""


def said(*argv: str, uid: int | None = None, first: str = "") -> str:
    """What a program that must refuse says, in a network namespace of its own with nothing in it.

    `first` is run there by a shell before the program, whose process it becomes.
    """
    command = [str(BIN / argv[0]), *argv[1:]]
    if uid is None:
        command = ["unshare", "-n", "-m", "sh", "-c", f'{first}\nexec "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, user=uid, check=False)
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
    assert not (tmp_path / "root").exists()


def test_kubeconfig_with_a_missing_ca_file(tmp_path):
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG.format(port=1, ca=tmp_path / "no-ca.crt"))
    line = said("nodelet", "run", "--kubeconfig", str(path), "--root-dir", str(tmp_path / "root"))
    assert "no-ca.crt" in line


def test_swap_that_is_on(tmp_path):
    """Row A09: the message has the fix. The swap is made up: /proc/swaps is another file in there."""
    path, swaps = tmp_path / "config.yaml", tmp_path / "swaps"
    path.write_text(HEAD + "failSwapOn: true\n")
    swaps.write_text("Filename\tType\tSize\tUsed\tPriority\n/dev/none1 partition 1 0 -2\n")
    kubeconfig = tmp_path / "kubeconfig"
    authority = tmp_path / "ca.crt"
    authority.write_text("")
    kubeconfig.write_text(KUBECONFIG.format(port=1, ca=authority))
    words = ("--config", str(path), "--kubeconfig", str(kubeconfig), "--root-dir", str(tmp_path / "root"))
    line = said("nodelet", "run", *words, first=f"mount --bind {swaps} /proc/swaps")
    assert "swap is on (/dev/none1): run swapoff -a, or set failSwapOn: false" in line


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


def alone(folder: Path, *flags: str) -> list[str]:
    """A command line of `nodelet run` that is good, but for the flags added."""
    (folder / "manifests").mkdir(exist_ok=True)
    return [
        *("nodelet", "run", "--standalone", f"--manifests={folder / 'manifests'}"),
        *(f"--root-dir={folder / 'root'}", f"--cgroup-root=/nodelet-test-{os.getpid()}-bad"),
        *("--hostname-override=n", *flags),
    ]


def cri(folder: Path, **changes: str) -> list[str]:
    """A command line of `nodelet-cri` that is good, but for the changes."""
    flags = {
        "listen": f"unix://{folder}/run/cri.sock",
        "root": f"{folder}/data",
        "state": f"{folder}/state",
        "registry_config_dir": f"{folder}/registries",
        "netns_dir": f"{folder}/netns",
        "cni_conf_dir": f"{folder}/net.d",
    }
    return [
        "nodelet-cri",
        *(f"--{key.replace('_', '-')}={value}" for key, value in (flags | changes).items()),
    ]


def left(folder: Path) -> set[str]:
    """Names below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def stranger(tmp_path) -> Iterator[tuple[int, Path]]:
    """A TLS server that no CA of ours has signed: its port and the file of another CA."""
    pair = certificates.ensure_self_signed(tmp_path / "server", hostname="localhost", ips=["127.0.0.1"])
    other = certificates.ensure_self_signed(tmp_path / "other", hostname="localhost", ips=["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_shake_hands, args=(listener, context), daemon=True)
        thread.start()
        yield listener.getsockname()[1], other.cert
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def _shake_hands(listener: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(OSError):
            context.wrap_socket(connection, server_side=True).close()


@pytest.mark.parametrize("flag", ["--kubeconfig", "--bootstrap-kubeconfig"])
def test_an_api_server_that_another_ca_has_signed(tmp_path, stranger, flag):
    """Not something that passes by itself: the start fails, and the init system tries again."""
    port, ca = stranger
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG.format(port=port, ca=ca))
    command = [str(BIN / "nodelet"), "run", f"--root-dir={tmp_path}/root", "--hostname-override=n"]
    command += [f"{flag}={path}", *([] if flag == "--kubeconfig" else [f"--kubeconfig={tmp_path}/none"])]
    command += ["--port=0", "--healthz-port=0"]
    # In this process's own network namespace, which the server is in too.
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert str(path) in line
    assert f"https://127.0.0.1:{port}" in line
    assert "certificate-authority" in line


@pytest.mark.parametrize(("field", "port"), [("port", 10250), ("healthzPort", 10248)])
def test_port_in_use(tmp_path, field, port):
    listen = f"{LO}; busybox nc -l -p {port} </dev/null >/dev/null 2>&1 & sleep 0.3"
    line = said(*alone(tmp_path), first=f"{LO}\n{listen}")
    assert f"{field} {port} is in use" in line
    assert left(tmp_path) == {"manifests"}


def test_standalone_without_manifests(tmp_path):
    assert "--manifests" in said("nodelet", "run", "--standalone")
    assert f"{tmp_path}/none" in said("nodelet", "run", "--standalone", f"--manifests={tmp_path}/none")


@pytest.mark.parametrize("command", [("nodelet",), ("nodelet-cri",)])
def test_a_machine_without_cgroups(tmp_path, command):
    empty = tmp_path / "empty"
    empty.mkdir()
    words = alone(tmp_path) if command == ("nodelet",) else cri(tmp_path)
    before = left(tmp_path)
    line = said(*words, first=f"mount --bind {empty} /sys/fs/cgroup")
    assert "no cgroups in /sys/fs/cgroup" in line
    assert left(tmp_path) == before


def test_a_kernel_without_overlay(tmp_path):
    (tmp_path / "filesystems").write_text("nodev\tproc\n\text4\n")
    before = left(tmp_path)
    line = said(*cri(tmp_path), first=f"mount --bind {tmp_path}/filesystems /proc/filesystems")
    assert "overlay" in line
    assert "modprobe overlay" in line
    assert left(tmp_path) == before


def test_a_machine_without_iptables(tmp_path):
    script = (
        "mount -t tmpfs run /run; mkdir /run/upper /run/work\n"
        "mount -t overlay -o lowerdir=/usr/sbin,upperdir=/run/upper,workdir=/run/work none /usr/sbin\n"
        "rm /usr/sbin/*tables*"
    )
    line = said(*alone(tmp_path), first=script)
    assert "iptables is not installed" in line
    assert left(tmp_path) == {"manifests"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"listen": "tcp://127.0.0.1:1"}, "--listen 'tcp://127.0.0.1:1' must be unix:///PATH"),
        ({"listen": "unix:///proc/none/cri.sock"}, "--listen: /proc/none cannot be made"),
        ({"root": "relative"}, "--root 'relative' must be an absolute path"),
        ({"state": "/proc/none"}, "--state: /proc/none cannot be made"),
        ({"registry_config_dir": "/dev/null"}, "--registry-config-dir /dev/null is not a directory"),
        ({"cni_conf_dir": "/dev/null"}, "--cni-conf-dir /dev/null is not a directory"),
        ({"cni_bin_dir": "/dev/null"}, "--cni-bin-dir /dev/null is not a directory"),
        ({"stream_address": "0.0.0.0:1"}, "--stream-address"),
        ({"cgroup_root": "/dev"}, "no cgroups in /dev"),
        ({"config": "/nowhere/cri.yaml"}, "/nowhere/cri.yaml"),
    ],
)
def test_bad_settings_of_the_runtime(tmp_path, changes, words):
    assert words in said(*cri(tmp_path, **changes))
    assert not (tmp_path / "run" / "cri.sock").exists()


def test_words_for_the_image_store(tmp_path):
    root = f"--root={tmp_path}/data"
    assert f"{tmp_path}/none" in said("nodelet-cri", "image", "import", f"{tmp_path}/none", root)
    assert "dance" in said("nodelet-cri", "image", "dance")
    nobody = f"--endpoint=unix://{tmp_path}/cri.sock"
    for words in (["image", "ls"], ["ps"]):
        assert f"no daemon answers at unix://{tmp_path}/cri.sock" in said("nodelet-cri", *words, nobody)
    assert not left(tmp_path)


def test_a_second_runtime_on_the_same_state(tmp_path):
    (tmp_path / "state").mkdir()
    with locked(tmp_path / "state" / "lock"):
        line = said(*cri(tmp_path))
    assert f"another nodelet-cri uses {tmp_path}/state" in line
    assert not (tmp_path / "run" / "cri.sock").exists()


def test_a_bad_cni_configuration_is_named_while_the_runtime_runs(tmp_path):
    """Not fatal: the file may be repaired while images are pulled; the node is NotReady until then."""
    (tmp_path / "net.d").mkdir()
    (tmp_path / "net.d" / "05-bad.conflist").write_text('{"name": "x", "cniVersion": "1.0.0", "plugins": 3}')
    command = cri(tmp_path)
    daemon = subprocess.Popen([str(BIN / command[0]), *command[1:]], stderr=subprocess.PIPE)
    try:
        with grpc.insecure_channel(f"unix:{tmp_path}/run/cri.sock") as channel:
            stub = RuntimeServiceStub(channel)
            answer = stub.Status(runtime_pb2.StatusRequest(), wait_for_ready=True, timeout=20)
    finally:
        daemon.terminate()
        _, log = daemon.communicate(timeout=20)
    [network] = [item for item in answer.status.conditions if item.type == "NetworkReady"]
    assert not network.status
    assert f"{tmp_path}/net.d/05-bad.conflist: plugins must be a list" in network.message
    assert b"05-bad.conflist" in log
    assert daemon.returncode == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("deploy/lab", "dance"), "dance"),
        (("deploy/lab",), "VERB"),
        (("deploy/lab", "up", "--no-such"), "--no-such"),
        (("deploy/lab", "up", "--nodes=many"), "many"),
        (("deploy/lab", "--name=Bad_Name", "up"), "Bad_Name"),
        (("deploy/lab", "node", "add", "control"), "control"),
        (("deploy/lab", "shell", "../n1"), "../n1"),
        (("tests/run", "wrong-ring"), "wrong-ring"),
        (("tests/run", "--no-such"), "--no-such"),
    ],
)
def test_wrong_words_for_the_lab_and_the_tests(command, words):
    done = subprocess.run(
        [CHECKOUT / command[0], *command[1:]], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert words in line


def test_a_machine_that_the_lab_does_not_have():
    for verb in (["shell", "n9"], ["logs", "n9"], ["node", "remove", "n9"]):
        done = subprocess.run(
            [CHECKOUT / "deploy/lab", "--name=test-none", *verb],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert "n9" in line


@pytest.mark.parametrize("program", ["nodelet", "nodelet-cri", "nodelet-cni"])
def test_help_and_version(program):
    for flag, words in (("--version", "0.1.0"), ("--help", "usage")):
        done = subprocess.run(
            [BIN / program, flag], capture_output=True, text=True, timeout=60, check=False, input=""
        )
        assert done.returncode == 0
        assert words in done.stdout
        assert not done.stderr


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
