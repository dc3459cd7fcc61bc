"""Files, drop-ins and flags to settings; every mistake is one line that names the thing and the fix."""

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from agent.config import flags, kubelet, load, nodelet
from agent.config.durations import parse_duration
from host.errors import InputError

HEAD = {"apiVersion": kubelet.API_VERSION, "kind": kubelet.KIND}


def settings(tmp_path, document=None, *argv):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**HEAD, **(document or {})}))
    return load.load(flags.parse([f"--config={path}", "--kubeconfig=/k", "--hostname-override=n1", *argv]))


def test_defaults_are_kubelets(tmp_path):
    config = settings(tmp_path).kubelet
    assert (config.port, config.healthz_port, config.max_pods) == (10250, 10248, 110)
    assert config.authentication.anonymous.enabled is False
    assert config.authorization.mode == "Webhook"
    assert config.eviction_hard["memory.available"] == "100Mi"


def test_what_kubeadm_writes(tmp_path):
    config = settings(
        tmp_path,
        {
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"cacheTTL": "0s", "enabled": True},
                "x509": {"clientCAFile": "/etc/kubernetes/pki/ca.crt"},
            },
            "authorization": {
                "mode": "Webhook",
                "webhook": {"cacheAuthorizedTTL": "0s", "cacheUnauthorizedTTL": "0s"},
            },
            "cgroupDriver": "systemd",
            "clusterDNS": ["10.96.0.10"],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": "",
            "cpuManagerReconcilePeriod": "0s",
            "crashLoopBackOff": {},
            "logging": {"flushFrequency": 0, "options": {"json": {"infoBufferSize": "0"}}, "verbosity": 0},
            "memorySwap": {},
            "nodeStatusUpdateFrequency": "0s",
            "rotateCertificates": True,
            "runtimeRequestTimeout": "0s",
            "shutdownGracePeriod": "0s",
            "staticPodPath": "/etc/kubernetes/manifests",
            "volumeStatsAggPeriod": "0s",
        },
    ).kubelet
    assert config.authentication.x509.client_ca_file == "/etc/kubernetes/pki/ca.crt"
    assert config.authentication.webhook.cache_ttl == 120
    assert config.node_status_update_frequency == 10
    assert config.container_runtime_endpoint == "unix:///run/nodelet/cri.sock"
    assert config.rotate_certificates is True


def test_flags_win_over_drop_ins_which_win_over_the_file(tmp_path):
    folder = tmp_path / "conf.d"
    folder.mkdir()
    for name, document in (
        ("20-b.conf", {"maxPods": 30, "clusterDNS": ["2.2.2.2"]}),
        ("10-a.conf", {"maxPods": 20, "authentication": {"anonymous": {"enabled": True}}}),
        ("ignored.yaml", {"maxPods": 99}),
    ):
        (folder / name).write_text(yaml.safe_dump({**HEAD, **document}))
    document = {"maxPods": 10, "clusterDNS": ["1.1.1.1"], "authentication": {"x509": {"clientCAFile": "/ca"}}}
    config = settings(tmp_path, document, f"--config-dir={folder}", "--port", "1234").kubelet
    assert config.max_pods == 30
    assert config.cluster_dns == ("2.2.2.2",)
    assert config.authentication.anonymous.enabled is True
    assert config.authentication.x509.client_ca_file == "/ca"
    assert config.port == 1234
    assert settings(tmp_path, {}, f"--config-dir={folder}", "--max-pods=7").kubelet.max_pods == 7


def test_a_known_field_without_effect_is_logged(tmp_path, caplog):
    caplog.set_level("INFO")
    settings(tmp_path, {"protectKernelDefaults": True})
    assert [record.args[0] for record in caplog.records] == ["protectKernelDefaults"]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"maxPod": 3}, ["unknown field maxPod", "did you mean maxPods"]),
        ({"maxPods": "many"}, ["maxPods", "int"]),
        (
            {"crashLoopBackOff": {"maxContainerRestartPeriod": "10m"}},
            ["crashLoopBackOff.maxContainerRestartPeriod", "between 1s and 300s"],
        ),
        (
            {"imagePullCredentialsVerificationPolicy": "Sometimes"},
            ["imagePullCredentialsVerificationPolicy", "AlwaysVerify"],
        ),
        ({"authentication": {"x509": {"caFile": "x"}}}, ["authentication.x509", "caFile"]),
        ({"evictionHard": {"memory.free": "1Gi"}}, ["evictionHard", "memory.free", "memory.available"]),
        ({"evictionSoft": {"pid.available": "5%"}}, ["evictionSoftGracePeriod.pid.available", "must be set"]),
        ({"imageGCLowThresholdPercent": 90}, ["imageGCLowThresholdPercent 90", "must be below"]),
        ({"imageMaximumGCAge": "1s"}, ["imageMaximumGCAge", "longer than imageMinimumGCAge"]),
        ({"memorySwap": {"swapBehavior": "Unlimited"}}, ["swapBehavior", "NoSwap or LimitedSwap"]),
        ({"enforceNodeAllocatable": ["kube-reserved"]}, ["needs kubeReservedCgroup"]),
        ({"systemReserved": {"gpu": "1"}}, ["systemReserved", "'gpu' cannot be reserved"]),
        (
            {"shutdownGracePeriod": "10s", "shutdownGracePeriodCriticalPods": "20s"},
            ["shutdownGracePeriodCriticalPods", "must not be longer"],
        ),
        ({"nodeStatusUpdateFrequency": "10 seconds"}, ["10 seconds", "example"]),
        ({"port": 70000}, ["port", "70000"]),
        ({"cgroupDriver": "cgroup"}, ["cgroupDriver", "cgroupfs or systemd"]),
        ({"tlsCertFile": "/x"}, ["tlsPrivateKeyFile", "both or neither"]),
        ({"authorization": {"mode": "Nobody"}}, ["authorization.mode"]),
        ({"containerLogMaxSize": "10 MB"}, ["10 MB"]),
        ({"containerLogMaxFiles": 1}, ["containerLogMaxFiles", "2 or more"]),
        ({"containerLogMonitorInterval": "1s"}, ["containerLogMonitorInterval", "3s or more"]),
        ({"containerRuntimeEndpoint": "tcp://x"}, ["containerRuntimeEndpoint"]),
    ],
)
def test_mistakes_in_the_file(tmp_path, document, words):
    with pytest.raises(InputError) as caught:
        settings(tmp_path, document)
    message = str(caught.value)
    assert "config.yaml" in message
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--maxpods=3"], ["unknown flag --maxpods", "--max-pods"]),
        (["--max-pods"], ["--max-pods needs a value"]),
        (["--max-pods=x"], ["--max-pods", "whole number"]),
        (["stray"], ["unexpected argument 'stray'"]),
        (["--node-ip=1.2.3"], ["--node-ip"]),
        (["--register-with-taints=a=b"], ["--register-with-taints", "key[=value]:effect"]),
        (["--node-labels=a"], ["--node-labels", "key=value"]),
        (["--register-node=perhaps"], ["true or false"]),
    ],
)
def test_mistakes_on_the_command_line(argv, words):
    with pytest.raises(InputError) as caught:
        flags.parse(argv)
    assert all(word in str(caught.value) for word in words), caught.value


def test_flag_forms():
    options = flags.parse(
        [
            "--kubeconfig",
            "/k",
            "--standalone",
            "--fail-swap-on=false",
            "-v",
            "4",
            "--node-labels=a=b,c=",
            "--register-with-taints=dedicated=x:NoSchedule,gone:NoExecute",
            "--pod-infra-container-image=pause",
            "--feature-gates=A=true,B=false",
        ]
    )
    assert options.kubeconfig == "/k"
    assert options.standalone is True
    assert options.verbosity == 4
    assert options.node_labels == {"a": "b", "c": ""}
    assert options.fields["failSwapOn"] is False
    assert options.fields["featureGates"] == {"A": True, "B": False}
    assert options.fields["registerWithTaints"] == [
        {"key": "dedicated", "value": "x", "effect": "NoSchedule"},
        {"key": "gone", "value": "", "effect": "NoExecute"},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a map"),
        ("a: [", "not YAML"),
        ("a: 1\n---\nb: 2\n", "more than one YAML document"),
        ("kind: Pod\napiVersion: v1\n", "expected apiVersion"),
        ("!!python/object/apply:os.system [id]", "not YAML"),
    ],
)
def test_files_that_are_something_else(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load.load(flags.parse([f"--config={path}", "--kubeconfig=/k"]))


def test_a_missing_file_and_a_missing_kubeconfig():
    with pytest.raises(InputError, match="no such file"):
        load.load(flags.parse(["--config=/nowhere", "--kubeconfig=/k"]))
    with pytest.raises(InputError, match="--kubeconfig is missing"):
        load.load(flags.parse([]))
    with pytest.raises(InputError, match="goes with --standalone"):
        load.load(flags.parse(["--kubeconfig=/k", "--manifests=/m"]))


def test_node_names():
    assert load.node_name("Web.Example.ORG") == "web.example.org"
    with pytest.raises(InputError, match="--hostname-override"):
        load.node_name("under_score")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("1h30m", 5400), ("100ms", 0.1), ("0", 0), ("1m0.5s", 60.5), ("-5s", -5)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "s", "10x", "1s2", "ten"])
def test_bad_durations(text):
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


def test_nodelet_configuration():
    head = {"apiVersion": nodelet.API_VERSION, "kind": nodelet.KIND}
    config = nodelet.build({**head, "clusterCIDR": "10.244.0.0/16", "overlay": {"vni": 2}}, where="f")
    assert config.overlay.vni == 2
    assert config.proxy.mode == "iptables"
    for wrong, words in (
        ({"overlay": {"vnid": 2}}, "vnid"),
        ({"overlay": {"backend": "ipsec"}}, "overlay.backend"),
        ({"clusterCIDR": "10.244.0.0/99"}, "clusterCIDR"),
        ({"overlay": {"nonMasqueradeCIDRs": ["10.0.0.1/8"]}}, "overlay.nonMasqueradeCIDRs"),
    ):
        with pytest.raises(InputError, match=words):
            nodelet.build({**head, **wrong}, where="f")


@pytest.mark.parametrize("section", [kubelet.KubeletConfiguration, nodelet.NodeletConfiguration])
def test_every_setting_is_read_somewhere(section):
    """A field that nobody reads would be a promise not kept; it belongs into `UNUSED`, which is logged."""
    agent = Path(kubelet.__file__).parents[1]
    text = "".join(path.read_text() for path in agent.rglob("*.py"))

    def unread(struct):
        for field in msgspec.structs.fields(struct):
            if isinstance(field.type, type) and issubclass(field.type, kubelet.Section):
                yield from unread(field.type)
            elif not re.search(rf"\.{field.name}\b", text):
                yield f"{struct.__name__}.{field.name}"

    assert list(unread(section)) == []
