"""From a pod's spec to CRI messages."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from podkit import make_pod

from agent.api.structs import Secret
from agent.pods.convert import ImageFact
from agent.pods.credentials import credentials
from agent.pods.naming import Dns
from agent.pods.security import SpecError, check_sysctls
from agent.pods.settings import PodSettings
from agent.pods.translate import container_config, sandbox_config
from agent.volumes.base import Mount
from proto.cri import runtime_pb2 as pb

SETTINGS = PodSettings(node_name="n1", root=Path("/k"), log_root=Path("/l"), memory_capacity=4 << 30)
IMAGE = ImageFact(id="sha256:1", uid=0)


def container_of(container: dict[str, Any], *, image: ImageFact = IMAGE, **spec: Any) -> pb.ContainerConfig:
    pod = make_pod(spec={**spec, "containers": [{"name": "app", "image": "busybox", **container}]})
    mounts = [Mount(volume="v", host_path="/h", container_path="/c", propagation="Bidirectional")]
    return container_config(
        pod,
        pod.spec.containers[0],
        attempt=2,
        image=image,
        env={"WHO": "me"},
        mounts=mounts,
        settings=SETTINGS,
    )


def sandbox_of(**spec: Any) -> pb.PodSandboxConfig:
    dns = Dns(("1.1.1.1",))
    return sandbox_config(make_pod(spec=spec), attempt=1, dns=dns, cgroup_parent="/p", settings=SETTINGS)


def test_a_container() -> None:
    made = container_of({"command": ["echo", "$(WHO)"], "args": ["$$(WHO)"], "workingDir": "/w", "tty": True})
    assert list(made.command) == ["echo", "me"] and list(made.args) == ["$(WHO)"]
    assert (made.metadata.name, made.metadata.attempt, made.log_path) == ("app", 2, "app/2.log")
    assert made.image.image == "sha256:1" and made.image.user_specified_image == "busybox"
    assert made.labels["io.kubernetes.container.name"] == "app"
    assert made.labels["io.kubernetes.pod.uid"] == "u1"
    assert made.annotations["io.kubernetes.container.restartCount"] == "2"
    assert made.annotations["io.kubernetes.container.hash"]
    assert made.mounts[0].propagation == pb.PROPAGATION_BIDIRECTIONAL and made.tty
    assert [(e.key, e.value) for e in made.envs] == [("WHO", b"me")]


def test_resources() -> None:
    given = {"limits": {"cpu": "1", "memory": "500M", "hugepages-2Mi": "4Mi"}}
    made = container_of({"resources": given}).linux.resources
    assert (made.cpu_shares, made.cpu_quota, made.cpu_period) == (1024, 100_000, 100_000)
    assert (made.memory_limit_in_bytes, made.oom_score_adj) == (500_000_000, -997)
    assert [(h.page_size, h.limit) for h in made.hugepage_limits] == [("2MB", 4 << 20)]
    assert container_of({}).linux.resources.oom_score_adj == 1000


def test_the_containers_own_security_wins() -> None:
    own = {"runAsUser": 2000, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
    own |= {"capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}}
    shared = {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 5, "supplementalGroups": [6]}
    made = container_of({"securityContext": own}, securityContext=shared).linux.security_context
    assert (made.run_as_user.value, made.run_as_group.value) == (2000, 3000)
    assert made.no_new_privs and made.readonly_rootfs and list(made.supplemental_groups) == [5, 6]
    assert list(made.capabilities.add_capabilities) == ["NET_ADMIN"]
    assert "/proc/kcore" in made.masked_paths and "/proc/sys" in made.readonly_paths
    assert made.seccomp.profile_type == pb.SecurityProfile.Unconfined


def test_profiles() -> None:
    local = {"seccompProfile": {"type": "Localhost", "localhostProfile": "a/b.json"}}
    made = container_of({"securityContext": local}).linux.security_context
    assert made.seccomp.localhost_ref == "/k/seccomp/a/b.json"
    default = container_of({}, securityContext={"seccompProfile": {"type": "RuntimeDefault"}})
    assert default.linux.security_context.seccomp.profile_type == pb.SecurityProfile.RuntimeDefault
    for bad in ("../x", "/x", ""):
        with pytest.raises(SpecError):
            wrong = {"seccompProfile": {"type": "Localhost", "localhostProfile": bad}}
            container_of({"securityContext": wrong})


@pytest.mark.parametrize(
    ("user", "image", "words"),
    [
        (None, ImageFact(id="x", uid=0), "image will run as root"),
        (None, ImageFact(id="x", username="mail"), "non-numeric user (mail)"),
        (0, ImageFact(id="x", uid=5), "runAsUser breaks non-root policy"),
        (None, ImageFact(id="x", uid=1000), ""),
        (1000, ImageFact(id="x", uid=0), ""),
    ],
)
def test_run_as_non_root(user: int | None, image: ImageFact, words: str) -> None:
    shared: dict[str, Any] = {"runAsNonRoot": True}
    if user is not None:
        shared["runAsUser"] = user
    if not words:
        container_of({}, image=image, securityContext=shared)
        return
    with pytest.raises(SpecError) as caught:
        container_of({}, image=image, securityContext=shared)
    assert words in str(caught.value)


def test_the_images_user_is_handed_on() -> None:
    named = container_of({}, image=ImageFact(id="x", username="mail")).linux.security_context
    assert named.run_as_username == "mail" and not named.HasField("run_as_user")
    numbered = container_of({}, image=ImageFact(id="x", uid=8)).linux.security_context
    assert numbered.run_as_user.value == 8


def test_a_sandbox() -> None:
    ports = [{"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}]
    containers = [{"name": "app", "image": "x", "ports": ports}]
    made = sandbox_of(containers=containers, hostname="h", shareProcessNamespace=True)
    assert (made.hostname, made.log_directory, made.linux.cgroup_parent) == ("h", "/l/default_web_u1", "/p")
    assert made.metadata.attempt == 1 and list(made.dns_config.servers) == ["1.1.1.1"]
    assert (made.port_mappings[0].host_port, made.port_mappings[0].protocol) == (8080, pb.UDP)
    options = made.linux.security_context.namespace_options
    assert (options.network, options.pid, options.ipc) == (pb.POD, pb.POD, pb.POD)


def test_host_namespaces() -> None:
    made = sandbox_of(hostNetwork=True, hostPID=True, hostIPC=True)
    options = made.linux.security_context.namespace_options
    assert (options.network, options.pid, options.ipc) == (pb.NODE, pb.NODE, pb.NODE)
    assert made.hostname == ""
    assert sandbox_of().linux.security_context.namespace_options.pid == pb.CONTAINER


@pytest.mark.parametrize("spec", [{"resourceClaims": [{"name": "gpu"}]}])
def test_what_this_node_cannot_do_is_refused_by_name(spec: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=next(iter(spec))):
        sandbox_of(**spec)


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("net.ipv4.tcp_syncookies", {}, ""),
        ("kernel.msgmax", {}, "not allowlisted"),
        ("kernel/msgmax", {}, "not allowlisted"),
        ("kernel/shm_rmid_forced", {}, ""),
        ("net.core.somaxconn", {}, ""),
        ("net.ipv4.tcp_syncookies", {"hostNetwork": True}, "host net"),
    ],
)
def test_sysctls(name: str, spec: dict[str, Any], words: str) -> None:
    pod = make_pod(spec={**spec, "securityContext": {"sysctls": [{"name": name, "value": "1"}]}})
    settings = PodSettings(node_name="n1", unsafe_sysctls=("net.core.*",))
    told = check_sysctls(pod, settings)
    assert words in told if words else told == ""


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("kernel.shm_rmid_forced", "kernel.shm_rmid_forced"),
        ("kernel/shm_rmid_forced", "kernel.shm_rmid_forced"),
        ("net/ipv4/conf/eth0.1/rp_filter", "net.ipv4.conf.eth0/1.rp_filter"),
        ("net.ipv4.conf.eth0/1.rp_filter", "net.ipv4.conf.eth0/1.rp_filter"),
    ],
)
def test_a_sysctl_may_be_written_with_slashes(name: str, taken: str) -> None:
    made = sandbox_of(securityContext={"sysctls": [{"name": name, "value": "1"}]})
    assert dict(made.linux.sysctls) == {taken: "1"}


def secret(auths: dict[str, Any]) -> Secret:
    raw = base64.b64encode(json.dumps({"auths": auths}).encode()).decode()
    return Secret(data={".dockerconfigjson": raw})


@pytest.mark.parametrize(
    ("image", "address", "fits"),
    [
        ("busybox", "https://index.docker.io/v1/", True),
        ("reg.example/team/app:1", "reg.example", True),
        ("reg.example/team/app:1", "reg.example/team", True),
        ("reg.example/teams/app:1", "reg.example/team", False),
        ("reg.example/team/app@sha256:0", "https://reg.example/v2/", True),
        ("a.reg.example/app", "*.reg.example", True),
        ("a.b.reg.example/app", "*.reg.example", False),
        ("reg.example:5000/app", "reg.example:5000", True),
        ("reg.example:5000/app", "reg.example", False),
    ],
)
def test_credentials_go_only_where_they_belong(image: str, address: str, fits: bool) -> None:
    both = secret({address: {"auth": base64.b64encode(b"u:p:q").decode()}})
    found = credentials(image, [both, Secret(data={".dockerconfigjson": "!!"}), Secret()])
    assert [(c.auth.username, c.auth.password) for c in found] == ([("u", "p:q")] if fits else [])


def test_the_closest_credential_comes_first() -> None:
    two = secret(
        {"r.io": {"username": "all", "password": "x"}, "r.io/team": {"username": "team", "password": "x"}}
    )
    assert [c.auth.username for c in credentials("r.io/team/app", [two])] == ["team", "all"]
