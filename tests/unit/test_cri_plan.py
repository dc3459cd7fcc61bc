"""What requests become: specs of sandboxes and containers, signals, messages. No kernel, no files."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.images.model import ImageConfig
from cri.server.container_check import check_resources
from cri.server.container_create import log_file
from cri.server.container_lsm import Labels
from cri.server.container_plan import (
    Place,
    argv_of,
    check_config,
    container_spec,
    env_of,
    mounts_of,
    resources_of,
    volume_targets,
)
from cri.server.container_start import user_of_process
from cri.server.container_update_resources import merged
from cri.server.netdev import parse_net_dev
from cri.server.render import container_status, select_containers
from cri.server.sandbox_check import check_sandbox
from cri.server.sandbox_plan import pod_network, resolv_conf, sandbox_spec
from cri.server.sandbox_stats import network_usage
from cri.server.signals import signal_number, stop_signal
from cri.state.records import ContainerRecord
from cri.state.store import Container
from host.cgroups import Cgroups
from host.errors import InputError
from proto.cri import runtime_pb2 as pb

PLACE = Place(
    container_id="c1",
    sandbox_id="s1",
    cgroup="/kubepods/podx/c1",
    upper=Path("/d/upper"),
    work=Path("/d/work"),
    lower=(Path("/l/2"), Path("/l/1")),
    log=Path("/logs/main/0.log"),
    resolv_conf=Path("/s/resolv.conf"),
    hostname_file=Path("/s/hostname"),
    hosts_file=Path("/s/hosts"),
    hostname="web",
)
IMAGE = ImageConfig(
    user="mail", env=("PATH=/bin", "A=image"), entrypoint=("/entry",), cmd=("default",), working_dir="/srv"
)


def config(**fields) -> pb.ContainerConfig:
    made = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="main"), image=pb.ImageSpec(image="i"))
    made.MergeFrom(pb.ContainerConfig(**fields))
    return made


def secured(**fields) -> pb.ContainerConfig:
    security = pb.LinuxContainerSecurityContext(**fields)
    return config(linux=pb.LinuxContainerConfig(security_context=security))


def spec(made: pb.ContainerConfig, image: ImageConfig = IMAGE):
    return container_spec(made, image, PLACE, seccomp=b"", labels=Labels(), devices=())


@pytest.mark.parametrize(
    ("command", "args", "argv"),
    [
        ([], [], ("/entry", "default")),
        ([], ["a"], ("/entry", "a")),
        (["/x"], [], ("/x",)),
        (["/x"], ["a"], ("/x", "a")),
    ],
)
def test_the_command_line_follows_kubernetes_rule(command, args, argv):
    assert argv_of(config(command=command, args=args), IMAGE) == argv


def test_nothing_to_run_is_an_error():
    with pytest.raises(InputError, match="no command"):
        argv_of(config(), ImageConfig())


def test_the_environment_is_defaults_then_image_then_pod():
    made = config(envs=[pb.KeyValue(key="A", value=b"pod"), pb.KeyValue(key="B", value=b"\xff=x")], tty=True)
    env = dict(env_of(made, IMAGE, hostname="web"))
    assert env == {"PATH": "/bin", "HOSTNAME": "web", "TERM": "xterm", "A": "pod", "B": "\udcff=x"}


@pytest.mark.parametrize("name", ["", "A=B", "A\0"])
def test_an_unusable_variable_is_refused(name):
    with pytest.raises(InputError, match="environment variable"):
        env_of(config(envs=[pb.KeyValue(key=name, value=b"x")]), IMAGE, hostname="h")


def test_mounts_are_ordered_and_the_kubelets_win():
    made = config(
        mounts=[
            pb.Mount(container_path="/data/sub", host_path="/h/sub"),
            pb.Mount(container_path="/data", host_path="/h", propagation=pb.PROPAGATION_BIDIRECTIONAL),
            pb.Mount(container_path="/etc/hostname", host_path="/h/name", readonly=True),
        ]
    )
    mounts = [(item.target, str(item.source), item.propagation) for item in mounts_of(made, PLACE)]
    assert mounts == [
        ("/data", "/h", "shared"),
        ("/etc/resolv.conf", "/s/resolv.conf", "private"),
        ("/etc/hosts", "/s/hosts", "private"),
        ("/data/sub", "/h/sub", "private"),
        ("/etc/hostname", "/h/name", "private"),
    ]


@pytest.mark.parametrize(
    "mount", [{"container_path": "x", "host_path": "/h"}, {"container_path": "/x", "host_path": "h"}]
)
def test_a_relative_mount_is_refused(mount):
    with pytest.raises(InputError, match="absolute"):
        mounts_of(config(mounts=[pb.Mount(**mount)]), PLACE)


def test_an_image_volume_gives_way_to_a_mount():
    image = ImageConfig(volumes=("/cache", "/data"))
    assert volume_targets(config(mounts=[pb.Mount(container_path="/data/", host_path="/h")]), image) == (
        "/cache",
    )


def test_zero_means_no_limit_is_given():
    limits = resources_of(pb.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=0))
    assert (limits.cpu_shares, limits.memory_limit) == (512, None)


def test_an_update_keeps_what_it_does_not_name():
    old = pb.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=5, unified={"a": "1"})
    new = merged(old, pb.LinuxContainerResources(memory_limit_in_bytes=9, unified={"b": "2"}))
    assert new == pb.LinuxContainerResources(
        cpu_shares=512, memory_limit_in_bytes=9, unified={"a": "1", "b": "2"}
    )


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"metadata": pb.ContainerMetadata(name="")}, InputError),
        ({"linux": secured(run_as_group=pb.Int64Value(value=1)).linux}, InputError),
        ({"linux": secured(namespace_options=pb.NamespaceOption(pid=pb.TARGET)).linux}, InputError),
    ],
)
def test_what_is_missing_or_unsupported_is_refused_by_name(fields, error):
    made = pb.ContainerConfig(image=pb.ImageSpec(image="i"))
    if "metadata" not in fields:
        made.metadata.name = "main"
    made.MergeFrom(pb.ContainerConfig(**fields))
    with pytest.raises(error):
        check_config(made, pb.PodSandboxConfig())


@pytest.mark.parametrize("relative", ["../x", "/x", "a/../b", "a//b", "./a", "a\0b", "a/"])
def test_a_log_stays_in_its_directory(relative):
    with pytest.raises(InputError, match="log_path"):
        log_file("/var/log/pods/x", relative)
    with pytest.raises(InputError, match="log_directory"):
        log_file("/var/../etc", "0.log")


def test_no_log_is_wanted_without_directory_or_name():
    assert log_file("", "0.log") is None
    assert log_file("/logs", "") is None
    assert log_file("/logs", "main/0.log") == Path("/logs/main/0.log")


@pytest.mark.parametrize(
    ("word", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("9", 9),
        ("SIGRTMIN", 34),
        ("RTMIN+3", 37),
        ("SIGRTMAX-1", 63),
        ("IOT", 6),
    ],
)
def test_signals_by_name(word, number):
    assert signal_number(word) == number


@pytest.mark.parametrize("word", ["", "0", "65", "KILL; x", "SIGRTMIN+31", "RTMIN-1", "SIG_DFL", "9" * 5000])
def test_a_strange_signal_is_refused(word):
    with pytest.raises(InputError):
        signal_number(word)


def test_the_pods_stop_signal_comes_first_and_a_bad_image_does_not_matter():
    assert stop_signal(pb.SIGUSR1, "SIGQUIT") == 10
    assert stop_signal(pb.SIGRTMINPLUS3, "") == 37
    assert stop_signal(pb.SIGRTMAXMINUS2, "") == 62
    assert stop_signal(pb.RUNTIME_DEFAULT, "SIGQUIT") == 3
    assert stop_signal(pb.RUNTIME_DEFAULT, "KILL; x") == 15
    assert stop_signal(pb.RUNTIME_DEFAULT, "") == 15
    for value in pb.Signal.values():
        assert 1 <= stop_signal(value, "") <= 64


@pytest.mark.parametrize("part", ["name", "namespace", "uid"])
def test_a_sandbox_needs_its_names(part):
    made = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="a", namespace="b", uid="c"))
    check_sandbox(made)
    made.metadata.ClearField(part)
    with pytest.raises(InputError, match=part):
        check_sandbox(made)


def sandbox(**fields) -> pb.PodSandboxConfig:
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="a", namespace="b", uid="c"), hostname="web", **fields
    )


@pytest.mark.parametrize("parent", ["kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice"])
def test_a_slice_is_not_taken_for_a_path(parent, tmp_path):
    with pytest.raises(InputError, match="cgroupDriver to cgroupfs"):
        Cgroups(tmp_path).check_parent(parent)


def test_a_sandbox_on_the_nodes_network():
    made = sandbox()
    options = made.linux.security_context.namespace_options
    found = sandbox_spec(made, sandbox_id="ab", netns_dir=Path("/n"), node_name="node")
    assert (found.netns_path, found.host_network, found.share_pid) == (Path("/n/cni-ab"), False, True)
    options.network, options.pid, options.ipc = pb.NODE, pb.CONTAINER, pb.NODE
    made.ClearField("hostname")
    found = sandbox_spec(made, sandbox_id="ab", netns_dir=Path("/n"), node_name="node")
    assert (found.netns_path, found.hostname, found.host_uts, found.host_ipc) == (None, "node", True, True)


@pytest.mark.parametrize("name", ["a" * 65, "a b", "a\nb", "../x"])
def test_a_strange_hostname_is_refused(name):
    made = sandbox()
    made.hostname = name
    with pytest.raises(InputError, match="hostname"):
        sandbox_spec(made, sandbox_id="ab", netns_dir=Path("/n"), node_name="node")


def test_ports_of_the_host_reach_the_plugins():
    ports = [
        pb.PortMapping(container_port=80, host_port=8080, protocol=pb.UDP, host_ip="127.0.0.1"),
        pb.PortMapping(container_port=81),
    ]
    found = pod_network(sandbox(port_mappings=ports), sandbox_id="ab", netns="/n")
    assert found.capabilities["portMappings"] == [
        {"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "127.0.0.1"}
    ]
    assert found.args["K8S_POD_NAME"] == "a"


def test_resolv_conf_comes_from_the_pod_or_else_from_the_node():
    assert resolv_conf(sandbox(), b"node") == b"node"
    dns = pb.DNSConfig(servers=["10.0.0.1", "10.0.0.2"], searches=["a", "b"], options=["ndots:5"])
    assert resolv_conf(sandbox(dns_config=dns), b"node") == (
        b"search a b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n"
    )
    with pytest.raises(InputError, match="one word"):
        resolv_conf(sandbox(dns_config=pb.DNSConfig(servers=["1.1.1.1\noptions x"])), b"")


@given(st.text(max_size=300))
def test_any_net_dev_text_can_be_read(text):
    parse_net_dev(text)


def test_interface_counters():
    text = "Inter-| Receive\n face |bytes\n  lo: 1 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0\n"
    text += "eth0: 10 1 2 0 0 0 0 0 20 1 3 0 0 0 0 0\n"
    usage = network_usage(parse_net_dev(text), 5)
    eth0 = usage.default_interface
    assert (eth0.name, eth0.rx_bytes.value, eth0.rx_errors.value) == ("eth0", 10, 2)
    assert (eth0.tx_bytes.value, eth0.tx_errors.value) == (20, 3)
    assert list(usage.interfaces) == []


def test_who_a_process_is_comes_from_the_kernel(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tx:y\nUid:\t1\t8\t8\t8\nGid:\t1\t9\t9\t9\nGroups:\t9 50 \n")
    assert user_of_process(7, proc=tmp_path) == (8, 9, (9, 50))
    assert user_of_process(8, proc=tmp_path) is None


def test_a_container_being_made_is_hidden_and_facts_become_a_status():
    record = ContainerRecord(id="c1", sandbox_id="s1", config=b"", image_id="sha256:1", user=(1, 2, (3,)))
    made = Container(record, config())
    assert select_containers([made], pb.ContainerFilter()) == []
    status = container_status(made)
    assert status.image_id == "sha256:1"
    assert list(status.user.linux.supplemental_groups) == [3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"host_path": "/tmp"}, "host_path must be empty"),
        ({"readonly": False}, "readonly must be true"),
    ],
)
def test_an_image_volume_is_read_only_and_nothing_else(change, words):
    mount = pb.Mount(**{"container_path": "/x", "image": pb.ImageSpec(image="i"), "readonly": True, **change})
    place = dataclasses.replace(PLACE, images=(Path("/d/image-0"),))
    with pytest.raises(InputError, match=words):
        mounts_of(config(mounts=[mount]), place)


@pytest.mark.parametrize(
    ("limits", "fits"),
    [
        ({"memory_limit_in_bytes": -1, "cpu_quota": -1, "memory_swap_limit_in_bytes": -1}, True),
        ({"oom_score_adj": -1000, "cpuset_cpus": "0-3,7", "cpuset_mems": "0"}, True),
        ({"cpu_shares": -1}, False),
        ({"cpuset_cpus": "0-"}, False),
        ({"oom_score_adj": 1001}, False),
    ],
)
def test_limits_that_no_cgroup_has_are_refused(limits, fits):
    with nullcontext() if fits else pytest.raises(InputError, match=next(iter(limits))):
        check_resources(pb.LinuxContainerResources(**limits))
