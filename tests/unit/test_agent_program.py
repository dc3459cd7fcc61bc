"""The program: command line, log lines, supervision, credentials on disk, notices to the init system."""

import base64
import logging
import socket
import stat

import pytest
import yaml

from agent import logs, main, preflight
from agent.api import certificates, kubeconfig, yamldoc
from agent.api.sources import live_references
from agent.api.structs import ConfigMapVolumeSource, ObjectMeta, Pod, PodSpec, SecretVolumeSource, Volume
from agent.config import durations, flags, load
from agent.node import bootstrap
from agent.supervision import supervise
from host import notify
from host.errors import InputError


def test_version(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == "Kubernetes v1.37.0+nodelet.0.1.0\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["walk"], "unknown command 'walk'"),
        (["run", "--kubconfig=x"], "did you mean --kubeconfig?"),
        (["--kubeconfig=/nowhere/x", "--config=/nowhere/y"], "/nowhere/y cannot be read"),
        (["run"], "--kubeconfig is missing"),
    ],
)
def test_one_line_and_a_status(capsys, argv, words):
    assert main.main(argv) == 1
    error = capsys.readouterr().err.strip()
    assert words in error
    assert error.startswith("nodelet: ")
    assert "\n" not in error


def test_a_record_is_one_line_without_control_characters():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        import sys

        record = logging.LogRecord("n", logging.INFO, "f", 1, "a=%s", ("x\x1b[31m\ny\x85",), sys.exc_info())
    line = logs.LineFormatter().format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    assert "a=x\\x1b[31m\\ny\\x85" in line


async def test_a_component_that_fails_is_started_again(monkeypatch):
    monkeypatch.setattr("agent.supervision.RESTART_PAUSE", 0.0)
    runs = []

    async def run():
        runs.append(1)
        if len(runs) < 3:
            raise RuntimeError("broken")

    await supervise("part", run)
    assert len(runs) == 3

    async def wrong():
        raise InputError("port 1 is in use")

    with pytest.raises(InputError):
        await supervise("part", wrong)


def test_notices_to_the_init_system(tmp_path):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        notify.send("READY=1", address=path)
        assert listener.recv(100) == b"READY=1"
    notify.send("READY=1", address="")


KUBECONFIG = {
    "kind": "Config",
    "current-context": "x",
    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    "clusters": [{"name": "c", "cluster": {"server": "https://h:6443/", "certificate-authority": "ca.crt"}}],
    "users": [{"name": "u", "user": {"client-certificate-data": base64.b64encode(b"CERT").decode()}}],
}


def written(tmp_path, **changes):
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump({**KUBECONFIG, **changes}))
    return path


def test_a_kubeconfig(tmp_path):
    access = kubeconfig.load(written(tmp_path))
    assert access.server == "https://h:6443"
    assert access.ca_file == tmp_path / "ca.crt"
    assert access.cert_data == b"CERT"
    again = tmp_path / "again"
    again.write_bytes(kubeconfig.render(access, cert_file=tmp_path / "c.pem", key_file=tmp_path / "c.pem"))
    assert kubeconfig.load(again).cert_file == tmp_path / "c.pem"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "Pod"}, "not a kubeconfig"),
        ({"current-context": "y"}, "no entry named 'y' in contexts"),
        (
            {"users": [{"name": "u", "user": {"exec": {"command": "aws"}}}]},
            "users.user.exec is not supported",
        ),
        ({"clusters": [{"name": "c", "cluster": {"server": "h:6443"}}]}, "must be an https:// URL"),
        ({"users": [{"name": "u", "user": {"client-key-data": "%%"}}]}, "client-key-data is not base64"),
    ],
)
def test_kubeconfigs_that_cannot_be_used(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        kubeconfig.load(written(tmp_path, **changes))


def test_tokens_and_keys_do_not_show():
    access = kubeconfig.Access("https://h", token="t0ken", key_data=b"k3y")
    assert "t0ken" not in repr(access)
    assert "k3y" not in repr(access)


def test_certificates_are_stored_as_kubelet_does(tmp_path):
    for now in (0.0, 86400.0):
        link = certificates.store(tmp_path, b"CHAIN\n", b"KEY", prefix="kubelet-client", now=now)
    assert link.name == "kubelet-client-current.pem"
    assert link.read_bytes() == b"CHAIN\nKEY"
    assert link.readlink().name == "kubelet-client-1970-01-02-00-00-00.pem"
    assert stat.S_IMODE(link.stat().st_mode) == 0o600
    assert len(list(tmp_path.iterdir())) == 3


def test_when_a_bootstrap_is_needed(tmp_path):
    assert bootstrap.needed(tmp_path / "none", now=0) == "there is no kubeconfig yet"
    assert bootstrap.needed(written(tmp_path), now=0) == ""
    users = [{"name": "u", "user": {"client-certificate": "gone.pem"}}]
    assert "cannot be used" in bootstrap.needed(written(tmp_path, users=users), now=0)


def test_a_request_names_the_node_and_its_addresses():
    from cryptography import x509

    wanted = certificates.Wanted(
        signer=certificates.SERVING_SIGNER, node_name="n1", hostnames=("n1",), ips=("10.0.0.1", "fd00::1")
    )
    key, request = certificates.new_request(wanted)
    assert key.startswith(b"-----BEGIN PRIVATE KEY-----")
    parsed = x509.load_pem_x509_csr(request)
    assert "CN=system:node:n1" in parsed.subject.rfc4514_string()
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "fd00::1"]
    assert wanted.usages == ("digital signature", "server auth")


def test_what_volumes_follow():
    volumes = (
        Volume(name="a", config_map=ConfigMapVolumeSource(name="cm")),
        Volume(name="b", secret=SecretVolumeSource(secret_name="s")),
    )
    pod = Pod(metadata=ObjectMeta(namespace="d"), spec=PodSpec(volumes=volumes))
    assert live_references(pod) == {("configmaps", "d", "cm"), ("secrets", "d", "s")}


def test_documents_that_grow_by_aliases_are_refused():
    bomb = "a: &a [x]\nb: [" + ",".join(["*a"] * 300) + "]\n"
    with pytest.raises(InputError, match="aliases"):
        yamldoc.load(bomb.encode(), where="f")


def test_the_configuration_can_be_shown():
    import msgspec

    from agent.config.kubelet import KubeletConfiguration

    shown = msgspec.to_builtins(KubeletConfiguration(), enc_hook=durations.encode)
    assert shown["nodeStatusUpdateFrequency"] == "10s"
    assert shown["containerLogMaxSize"] == "10485760"


def test_standalone_needs_no_kubeconfig():
    settings = load.load(flags.parse(["--standalone", "--manifests=/m", "--hostname-override=n"]))
    assert str(settings.static_pods) == "/m"


def test_beside_a_running_agent_a_missing_kubeconfig_is_what_is_told(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        argv = ["--kubeconfig=/nowhere/x", "--address=127.0.0.1", f"--port={busy.getsockname()[1]}"]
        settings = load.load(flags.parse(argv))
        with pytest.raises(InputError, match="kubeconfig /nowhere/x cannot be read"):
            preflight.check_machine(settings)
