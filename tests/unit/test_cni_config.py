"""Strict reading of the network configuration, and the conflist the agent writes."""

import json
import sys
from pathlib import Path

import pytest

from cni import cli, entry, errors, launcher, main
from cni import config as configs
from cni.config import Attachment
from cni.errors import CniError
from cni.runtimeconfig import PortMapping, Rate, RuntimeConfig
from host import processes
from host.errors import InputError

ROOT = str(Path(__file__).resolve().parents[2])
GOOD = {"cniVersion": "1.1.0", "name": "nodelet", "type": "nodelet-cni", "subnets": ["10.244.1.0/24"]}


def parsed(**more):
    return configs.parse_config({**GOOD, **more})


def test_defaults():
    config = parsed()
    assert (config.bridge, config.mtu, config.masquerade, config.hairpin) == ("cbr0", 0, True, True)
    assert str(config.state_dir) == "/var/lib/cni/nodelet"
    assert (config.pod, config.spoof_protection, config.host_local_dir) == (RuntimeConfig(), True, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subnets", []),
        ("subnets", "10.244.1.0/24"),
        ("subnets", ["10.244.1.0/32"]),
        ("subnets", ["10.244.1.0/31"]),
        ("subnets", ["10.244.1.5/24"]),
        ("subnets", [167772160]),
        ("subnets", ["fd00::/127"]),
        ("subnets", ["10.244.1.0/24", "10.244.2.0/24"]),
        ("name", ""),
        ("name", "a/b"),
        ("name", "x" * 65),
        ("name", 7),
        ("bridge", "cbr0; reboot"),
        ("bridge", "a-name-that-is-too-long"),
        ("mtu", -1),
        ("mtu", 70000),
        ("mtu", True),
        ("mtu", "1500"),
        ("stateDir", "relative"),
        ("stateDir", "/var/../etc"),
        ("ipMasq", "yes"),
        ("clusterCIDRs", ["nonsense"]),
        ("runtimeConfig", []),
        ("runtimeConfig", {"portMappings": 1}),
        ("runtimeConfig", {"portMappings": [1]}),
        ("runtimeConfig", {"portMappings": [{"hostPort": 70000, "containerPort": 1}]}),
        ("runtimeConfig", {"portMappings": [{"hostPort": 80, "containerPort": "80"}]}),
        ("runtimeConfig", {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]}),
        ("runtimeConfig", {"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "x"}]}),
        ("runtimeConfig", {"bandwidth": {"ingressRate": 1000}}),
        ("runtimeConfig", {"bandwidth": {"egressBurst": 1000}}),
        ("runtimeConfig", {"bandwidth": {"egressRate": -1, "egressBurst": 1000}}),
        ("runtimeConfig", {"bandwidth": {"egressRate": 1000, "egressBurst": 1 << 40}}),
        ("runtimeConfig", {"bandwidth": {"egressRate": "1M", "egressBurst": 1000}}),
        ("runtimeConfig", {"bandwidth": 7}),
        ("runtimeConfig", {"ips": "10.244.1.7"}),
        ("runtimeConfig", {"ips": [7]}),
        ("runtimeConfig", {"ips": ["10.244.2.7"]}),
        ("runtimeConfig", {"ips": ["10.244.1.1"]}),
        ("runtimeConfig", {"ips": ["10.244.1.255"]}),
        ("runtimeConfig", {"ips": ["10.244.1.7", "10.244.1.8/24"]}),
        ("runtimeConfig", {"dns": {"servers": [7]}}),
        ("runtimeConfig", {"mac": "0a:58:0a:f4:01"}),
        ("runtimeConfig", {"mac": 7}),
        ("runtimeConfig", {"mac": "01:00:5e:00:00:01"}),
        ("runtimeConfig", {"mac": "00:00:00:00:00:00"}),
        ("runtimeConfig", {"aliases": "web"}),
        ("runtimeConfig", {"aliases": [7]}),
        ("args", ["mac"]),
        ("args", {"cni": ["mac"]}),
        ("args", {"cni": {"mac": "x"}}),
        ("nonMasqueradeCIDRs", ["10.0.0.1/8"]),
        ("spoofProtection", "no"),
        ("hostLocalDir", "networks"),
        ("stateDir", "/a\0b"),
        ("stateDir", "/\ud800"),
    ],
)
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(CniError) as caught:
        parsed(**{field: value})
    assert caught.value.code == errors.INVALID_CONFIG
    named = list(value) if field == "runtimeConfig" and value else [field]
    assert any(name in str(caught.value) for name in named)


def test_unknown_version_has_its_own_code():
    with pytest.raises(CniError) as caught:
        parsed(cniVersion="9.9.9")
    assert caught.value.code == errors.INCOMPATIBLE_VERSION


def test_port_mappings():
    mappings = [
        {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "0.0.0.0"},
        {"hostPort": 0, "containerPort": 81},
        {"hostPort": 53, "containerPort": 53, "protocol": "UDP"},
    ]
    assert parsed(runtimeConfig={"portMappings": mappings}).pod.port_mappings == (
        PortMapping(8080, 80, "tcp"),
        PortMapping(53, 53, "udp"),
    )


def test_the_mac_that_counts_is_the_pods_own():
    asked, static, by_environment = "02:00:00:00:00:0A", "02:00:00:00:00:0b", "02:00:00:00:00:0c"
    config = {**GOOD, "args": {"cni": {"mac": static}}}
    assert parsed().pod.mac == ""
    assert configs.parse_config(GOOD, {"MAC": by_environment}).pod.mac == by_environment
    assert configs.parse_config(config, {"MAC": by_environment}).pod.mac == static
    assert configs.parse_config({**config, "runtimeConfig": {"mac": asked}}).pod.mac == asked.lower()
    with pytest.raises(CniError, match="MAC of CNI_ARGS"):
        configs.parse_config(GOOD, {"MAC": "ff:ff:ff:ff:ff:ff"})


def test_what_containerd_sends():
    """go-cni writes its Go names, and 0 for a limit that is not asked for."""
    runtime = {
        "portMappings": [{"HostPort": 53, "ContainerPort": 54, "Protocol": "udp", "HostIP": ""}],
        "bandwidth": {"IngressRate": 8000, "IngressBurst": 4294967295, "EgressRate": 0, "EgressBurst": 0},
        "dns": {"Servers": ["10.96.0.10"], "Searches": None, "Options": []},
    }
    pod = parsed(runtimeConfig=runtime).pod
    assert pod.port_mappings == (PortMapping(53, 54, "udp"),)
    assert (pod.ingress, pod.egress) == (Rate(8000, 4294967295), None)
    assert pod.dns == {"nameservers": ["10.96.0.10"]}


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "x" * 16, "eth 0", "eth:0", "lo", "eth\n", "é", "a,b"]
)
def test_bad_interface_names(name):
    with pytest.raises(CniError) as caught:
        configs.parse_attachment("c1", name)
    assert caught.value.code == errors.INVALID_ENVIRONMENT


@pytest.mark.parametrize("container_id", ["", "../x", "a/b", "-x", "a b", "x" * 129, "a,b"])
def test_bad_container_ids(container_id):
    with pytest.raises(CniError) as caught:
        configs.parse_attachment(container_id, "eth0")
    assert caught.value.code == errors.INVALID_ENVIRONMENT


def test_valid_attachments():
    listed = {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}
    assert configs.valid_attachments(listed) == {Attachment("c1", "eth0")}
    assert configs.valid_attachments({"cni.dev/valid-attachments": []}) == frozenset()
    with pytest.raises(CniError, match="GC needs the list"):
        configs.valid_attachments({})


def test_conflist_is_read_back_by_the_plugin():
    data = configs.render_conflist(["10.244.1.0/24"], cluster_cidrs=["10.244.0.0/16"], mtu=1450)
    conflist = json.loads(data)
    (plugin,) = conflist["plugins"]
    config = configs.parse_config({**plugin, "name": conflist["name"], "cniVersion": "1.1.0"})
    assert (config.mtu, str(config.subnets[0]), str(config.cluster_cidrs[0])) == (
        1450,
        "10.244.1.0/24",
        "10.244.0.0/16",
    )
    assert plugin["capabilities"] == dict.fromkeys(("portMappings", "bandwidth", "ips", "dns", "mac"), True)
    assert str(config.host_local_dir) == "/var/lib/cni/networks"
    assert data == configs.render_conflist(["10.244.1.0/24"], cluster_cidrs=["10.244.0.0/16"], mtu=1450)


def test_conflist_without_a_range_says_what_to_do():
    with pytest.raises(InputError, match="controller-manager needs --allocate-node-cidrs"):
        configs.render_conflist([])


def run(stdin, **environment):
    return main.run({f"CNI_{key}": value for key, value in environment.items()}, stdin)


@pytest.mark.parametrize("stdin", [b"{", b"[]", b"\xff", b"[" * 100_000, b" " * (5 << 20)])
def test_bad_stdin_is_a_decode_failure(stdin):
    status, output = run(stdin, COMMAND="ADD")
    assert (status, output["code"]) == (1, errors.DECODE_FAILURE)


def test_version_needs_no_configuration():
    status, output = run(b"", COMMAND="VERSION")
    assert status == 0
    assert output["supportedVersions"][-1] == "1.1.0"


@pytest.mark.parametrize(("asked", "told"), [("0.4.0", "0.4.0"), ("9.9.9", "1.1.0"), (7, "1.1.0")])
def test_version_answers_in_the_version_asked(asked, told):
    stdin = json.dumps({"cniVersion": asked}).encode()
    assert run(stdin, COMMAND="VERSION")[1]["cniVersion"] == told


def test_status_and_unknown_commands():
    stdin = json.dumps(GOOD).encode()
    assert run(b'{"cniVersion": "1.1.0", "name": "n"}', COMMAND="STATUS")[1]["details"] == configs.NO_POD_CIDR
    status, output = run(stdin, COMMAND="RUN", CONTAINERID="c1", IFNAME="eth0")
    assert (status, output["code"]) == (1, errors.INVALID_ENVIRONMENT)


def test_args():
    assert main.parse_args("IgnoreUnknown=1;K8S_POD_NAME=a=b") == {
        "IgnoreUnknown": "1",
        "K8S_POD_NAME": "a=b",
    }
    with pytest.raises(CniError):
        main.parse_args("K8S_POD_NAME")


def test_add_needs_a_namespace():
    with pytest.raises(CniError, match="CNI_NETNS is empty"):
        entry.execute("ADD", config=GOOD, container_id="c1", ifname="eth0")


def test_the_executable_that_is_installed_answers(tmp_path):
    path = launcher.install(tmp_path)
    done = processes.run([str(path)], env={"CNI_COMMAND": "VERSION"})
    assert json.loads(done.stdout)["supportedVersions"] == list(configs.SUPPORTED_VERSIONS)
    assert path.stat().st_mode & 0o777 == 0o755


def test_installing_by_hand(tmp_path, capsys):
    assert cli.main(["--install", f"{tmp_path}/no"]) == 1
    assert cli.main(["--install", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/nodelet-cni\n"
    assert "no such file or directory" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--install"], "expected one argument"),
        (["--instal", "x", "--serve"], "not allowed with"),
        (["--socket", "x"], "one of the arguments --install --serve is required"),
        (["ADD"], "one of the arguments"),
    ],
)
def test_wrong_options(argv, words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_the_executable_imports_little():
    """Each of these costs as much time as all that a plugin does."""
    script = "import sys, cni.main; print(*sys.modules)"
    done = processes.run([sys.executable, "-IS", "-c", f"import sys; sys.path.append({ROOT!r}); {script}"])
    heavy = {
        "asyncio",
        "logging",
        "subprocess",
        "shutil",
        "tempfile",
        "ssl",
        "ctypes.util",
        "yaml",
        "msgspec",
    }
    assert set(done.stdout.decode().split()) & heavy == set()
