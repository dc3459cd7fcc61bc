"""Requests that cannot be done: the code says whose fault it is, the words name the field, nothing stays."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from criclient import CriClient, refused

from proto.cri import runtime_pb2 as pb

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
IDEMPOTENT = ("StopPodSandbox", "RemovePodSandbox", "StopContainer", "RemoveContainer")
ALONE = {
    "ContainerStatus": {},
    "ContainerStats": {},
    "StartContainer": {},
    "ReopenContainerLog": {},
    "UpdateContainerResources": {},
    "ExecSync": {"cmd": ["id"]},
    "Exec": {"cmd": ["id"], "stdout": True},
    "Attach": {"stdout": True},
    "PodSandboxStatus": {},
    "PodSandboxStats": {},
    "UpdatePodSandboxResources": {},
    "PortForward": {"port": [80]},
}
"""Calls that name one object, and what they need besides its id."""

IDS = ["none", "0" * 64, "../../etc", "x" * 10_000, "a\0b"]


def request_for(call: str, name: str, **words: Any) -> Any:
    """A request of this call for an object."""
    request = getattr(pb, f"{call}Request")(**words)
    field = "pod_sandbox_id" if "pod_sandbox_id" in request.DESCRIPTOR.fields_by_name else "container_id"
    setattr(request, field, name)
    return request


@pytest.mark.parametrize("call", ALONE)
async def test_an_unknown_id_is_not_found(node: CriClient, beyond_cri: None, call: str):
    for name in IDS:
        code, words = await refused(getattr(node.runtime, call)(request_for(call, name, **ALONE[call])))
        assert code is NOT_FOUND
        assert len(words) < 300


@pytest.mark.parametrize("call", IDEMPOTENT)
async def test_ending_what_is_not_there_succeeds(node: CriClient, call: str):
    await getattr(node.runtime, call)(request_for(call, "none"))


async def test_a_container_in_no_pod_is_not_found(node: CriClient):
    code, _ = await refused(node.create("none", node.sandbox_config(), "id"))
    assert code is NOT_FOUND


async def test_a_container_of_no_image_is_not_found(node: CriClient, beyond_cri: None):
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    code, words = await refused(node.create(sandbox, config, image="registry.test/none:1"))
    assert (code, "registry.test/none:1" in words) == (NOT_FOUND, True)


def namespaced(**modes: int) -> dict[str, Any]:
    security = pb.LinuxSandboxSecurityContext(namespace_options=pb.NamespaceOption(**modes))
    return {"linux": pb.LinuxPodSandboxConfig(security_context=security)}


def port(**words: Any) -> dict[str, Any]:
    return {"port_mappings": [pb.PortMapping(**words)]}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("hostname", {"hostname": "a b"}),
        ("hostname", {"hostname": "a\nb"}),
        ("hostname", {"hostname": "x" * 65}),
        ("network", namespaced(network=pb.CONTAINER)),
        ("network", namespaced(network=7)),
        ("pid", namespaced(pid=pb.TARGET)),
        ("pid", namespaced(pid=7)),
        ("ipc", namespaced(ipc=pb.CONTAINER)),
        ("dns_config", {"dns_config": pb.DNSConfig(servers=["1.1.1.1\nnameserver 2.2.2.2"])}),
        ("dns_config", {"dns_config": pb.DNSConfig(options=["a b"])}),
        ("log_directory", {"log_directory": "logs"}),
        ("log_directory", {"log_directory": "/var/../etc"}),
        ("cgroup_parent", {"linux": pb.LinuxPodSandboxConfig(cgroup_parent="/a/../..")}),
        ("sysctl", {"linux": pb.LinuxPodSandboxConfig(sysctls={"kernel.core_pattern": "|/x"})}),
        ("sysctl", {"linux": pb.LinuxPodSandboxConfig(sysctls={"kernel.shm_rmid_forced": "1\n2"})}),
        ("port_mappings", port(container_port=70000, host_port=80)),
        ("port_mappings", port(container_port=-1, host_port=80)),
        ("port_mappings", port(container_port=80, host_port=70000)),
        ("port_mappings", port(container_port=80, host_port=80, protocol=9)),
        ("port_mappings", port(container_port=80, host_port=80, host_ip="1.2.3")),
    ],
)
async def test_a_pod_that_makes_no_sense_is_refused(
    node: CriClient, beyond_cri: None, field: str, changes: dict[str, Any]
):
    code, words = await refused(node.run_pod(node.sandbox_config(**changes)))
    assert (code, field in words) == (INVALID, True), words
    assert not (await node.runtime.ListPodSandbox(pb.ListPodSandboxRequest())).items


@pytest.mark.parametrize("part", ["name", "namespace", "uid"])
async def test_a_pod_needs_its_name(node: CriClient, beyond_cri: None, part: str):
    config = node.sandbox_config()
    config.metadata.ClearField(part)
    code, words = await refused(node.run_pod(config))
    assert (code, f"metadata.{part}" in words) == (INVALID, True)


def secured(**fields: Any) -> dict[str, Any]:
    security = pb.LinuxContainerSecurityContext(**fields)
    return {"linux": pb.LinuxContainerConfig(security_context=security)}


def limited(**fields: Any) -> dict[str, Any]:
    return {"linux": pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(**fields))}


def mounted(**fields: Any) -> dict[str, Any]:
    return {"mounts": [pb.Mount(**{"container_path": "/x", "host_path": "/tmp", **fields})]}


def number(value: int) -> pb.Int64Value:
    return pb.Int64Value(value=value)


def added(*names: str) -> dict[str, Any]:
    return secured(capabilities=pb.Capability(add_capabilities=names))


def profile(kind: int, ref: str = "") -> pb.SecurityProfile:
    return pb.SecurityProfile(profile_type=kind, localhost_ref=ref)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("log_path", {"log_path": "../../etc/passwd"}),
        ("log_path", {"log_path": "/etc/passwd"}),
        ("environment", {"envs": [pb.KeyValue(key="A=B", value=b"c")]}),
        ("environment", {"envs": [pb.KeyValue(key="", value=b"c")]}),
        ("environment", {"envs": [pb.KeyValue(key="A", value=b"\0")]}),
        ("command", {"args": ["\0"]}),
        ("working_dir", {"working_dir": "tmp"}),
        ("stop_signal", {"stop_signal": 99}),
        ("capabilit", added("FLY")),
        ("run_as_user", secured(run_as_user=number(-1))),
        ("run_as_user", secured(run_as_user=number(2**31))),
        ("run_as_group", secured(run_as_group=number(5))),
        ("supplemental_groups", secured(supplemental_groups=[-1])),
        ("supplemental_groups_policy", secured(supplemental_groups_policy=7)),
        ("localhost_ref", secured(seccomp=profile(pb.SecurityProfile.Localhost))),
        ("localhost_ref", secured(seccomp=profile(pb.SecurityProfile.Localhost, "../x.json"))),
        ("localhost_ref", secured(apparmor=profile(pb.SecurityProfile.Localhost))),
        ("target_id", secured(namespace_options=pb.NamespaceOption(pid=pb.TARGET))),
        ("privileged", secured(privileged=True)),
        ("masked_paths", secured(masked_paths=["proc"])),
        ("readonly_paths", secured(readonly_paths=["../x"])),
        ("container_path", mounted(container_path="x")),
        ("container_path", mounted(container_path="")),
        ("host_path", mounted(host_path="tmp")),
        ("propagation", mounted(propagation=9)),
        ("host_path", {"devices": [pb.Device(host_path="/etc/passwd", permissions="r")]}),
        ("permissions", {"devices": [pb.Device(host_path="/dev/null", permissions="all")]}),
        ("memory_limit_in_bytes", limited(memory_limit_in_bytes=-5)),
        ("cpu_shares", limited(cpu_shares=-5)),
        ("cpu_period", limited(cpu_period=-5)),
        ("cpuset_cpus", limited(cpuset_cpus="a-b")),
        ("oom_score_adj", limited(oom_score_adj=5000)),
        ("page_size", limited(hugepage_limits=[pb.HugepageLimit(page_size="3XB", limit=1)])),
        ("unified", limited(unified={"../x": "1"})),
    ],
)
async def test_a_container_that_makes_no_sense_is_refused(
    node: CriClient, beyond_cri: None, field: str, changes: dict[str, Any]
):
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    container = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="bad"), command=["id"])
    container.image.image = "registry.test/busybox:1"
    container.MergeFrom(pb.ContainerConfig(**changes))
    request = pb.CreateContainerRequest(pod_sandbox_id=sandbox, config=container, sandbox_config=config)
    code, words = await refused(node.runtime.CreateContainer(request))
    assert (code, field in words) == (INVALID, True), (code, words)
    assert not (await node.runtime.ListContainers(pb.ListContainersRequest())).containers


@pytest.mark.parametrize(
    ("call", "field", "words"),
    [
        ("StopContainer", "timeout", {"timeout": -1}),
        ("ExecSync", "timeout", {"cmd": ["id"], "timeout": -1}),
        ("ExecSync", "cmd", {}),
        ("Exec", "cmd", {"stdout": True}),
        ("Exec", "stdout", {"cmd": ["id"]}),
        ("Exec", "tty", {"cmd": ["id"], "stdout": True, "stderr": True, "tty": True}),
        ("Attach", "stdout", {}),
        ("PortForward", "port", {"port": [0]}),
        ("PortForward", "port", {"port": [70000]}),
        (
            "UpdateContainerResources",
            "memory_limit_in_bytes",
            {"linux": pb.LinuxContainerResources(memory_limit_in_bytes=-5)},
        ),
    ],
)
async def test_a_call_that_makes_no_sense_is_refused(
    node: CriClient, beyond_cri: None, call: str, field: str, words: dict[str, Any]
):
    sandbox, container, _ = await node.launch("sleep", "1000")
    name = sandbox if call == "PortForward" else container
    code, text = await refused(getattr(node.runtime, call)(request_for(call, name, **words)))
    assert (code, field in text) == (INVALID, True), (code, text)
    assert (await node.status(container)).state == pb.CONTAINER_RUNNING


@pytest.mark.parametrize("call", ["PullImage", "ImageStatus", "RemoveImage"])
@pytest.mark.parametrize("name", ["", "a b", "UPPER", "x@sha256:1234", "../../etc/passwd", "\0"])
async def test_an_image_name_that_makes_no_sense_is_refused(
    node: CriClient, beyond_cri: None, call: str, name: str
):
    request = getattr(pb, f"{call}Request")(image=pb.ImageSpec(image=name))
    code, words = await refused(getattr(node.images, call)(request))
    assert (code, len(words) < 300) == (INVALID, True), (code, words)


async def test_a_checkpoint_is_not_made(node: CriClient, beyond_cri: None):
    code, words = await refused(node.runtime.CheckpointContainer(pb.CheckpointContainerRequest()))
    assert (code, "CheckpointContainer" in words) == (grpc.StatusCode.UNIMPLEMENTED, True)
