"""hostUsers: false as a kubelet asks for it: one user namespace a pod, mapped volumes, refusals by name."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from crinode import VOLUMES, CriNode
from test_cri_recovery import gone, pid_of
from test_cri_spdy import connect, open_pair
from userns_kit import in_userns, owner_of, userns_of

from host import netns
from proto.cri import runtime_pb2 as pb

ROOT = 131072
MAPPING = [pb.IDMapping(container_id=0, host_id=ROOT, length=65536)]


def userns(mapping: list[pb.IDMapping] = MAPPING, mode: int = pb.POD) -> pb.NamespaceOption:
    """What a kubelet sends; its other modes are those of an ordinary pod."""
    options = pb.NamespaceOption(pid=pb.CONTAINER)
    options.userns_options.CopyFrom(pb.UserNamespace(mode=mode, uids=mapping, gids=mapping))
    return options


def pod_config(
    node: CriNode, options: pb.NamespaceOption | None = None, **changes: Any
) -> pb.PodSandboxConfig:
    config = node.sandbox_config(**changes)
    config.linux.security_context.namespace_options.CopyFrom(options or userns())
    return config


def linux(config: pb.PodSandboxConfig, **security: Any) -> pb.LinuxContainerConfig:
    """A container of that pod: the kubelet gives it the pod's namespace options."""
    made = pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**security))
    made.security_context.namespace_options.CopyFrom(config.linux.security_context.namespace_options)
    return made


async def launch(node: CriNode, *command: str, **fields: Any) -> tuple[str, str, pb.PodSandboxConfig]:
    config = pod_config(node)
    fields.setdefault("linux", linux(config))
    return *await node.launch_with(config, *command, **fields), config


async def said(node: CriNode, container: str, script: str) -> list[str]:
    done = await node.exec(container, "sh", "-c", script)
    assert done.exit_code == 0, done
    return done.stdout.decode().splitlines()


async def refusal(call: Any) -> str:
    """The message of a request that is refused as wrong."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value
    return str(caught.value.details())


@pytest.fixture(autouse=True)
async def supported(node: CriNode) -> None:
    status = await node.runtime.Status(pb.StatusRequest())
    features = {item.name: item.features for item in status.runtime_handlers}
    if not features[""].user_namespaces:
        request = pb.RunPodSandboxRequest(config=pod_config(node))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node.runtime.RunPodSandbox(request)
        pytest.skip(str(caught.value.details()))
    assert not status.features.user_namespaces_host_network
    assert not any(item.user_namespaces for name, item in features.items() if name)


async def test_a_pod_as_a_kubelet_makes_it(node: CriNode):
    volume, secret = node.folder / "empty-dir", node.folder / "secret"
    volume.mkdir(mode=0o777)
    volume.chmod(0o777)
    secret.write_text("word")
    secret.chmod(0o600)
    mapped = {"uidMappings": MAPPING, "gidMappings": MAPPING}
    mounts = [
        pb.Mount(container_path="/data", host_path=str(volume), **mapped),
        pb.Mount(container_path="/secret", host_path=str(secret), readonly=True, **mapped),
    ]
    sandbox, container, config = await launch(node, "sleep", "1000", mounts=mounts)
    pid = await pid_of(node, container)
    assert Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", str(ROOT), "65536"]
    assert owner_of(pid, "net") == userns_of(pid) != userns_of(os.getpid())
    script = """cat /secret; echo; echo x > /data/new; echo '# mine' >> /etc/hosts
        ls -ln /etc/resolv.conf /etc/hosts /etc/hostname"""
    lines = await said(node, container, script)
    assert lines[0] == "word"
    assert [line.split()[2:4] for line in lines[1:]] == [["0", "0"]] * 3
    assert (volume / "new").stat().st_uid == 0
    status = (await node.runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox))).status
    assert status.linux.namespaces.options.userns_options.uids[0].host_id == ROOT
    address = status.network.ip
    assert any(address in line for line in await said(node, container, "ip -o addr show eth0"))
    groups = [line.split(":", 2)[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    assert any(path == f"{config.linux.cgroup_parent}/{container}" for path in groups)
    assert all(path == "/" or path.startswith(config.linux.cgroup_parent) for path in groups)
    own = userns_of(pid)
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    assert in_userns(own) == []
    assert not (node.folder / "netns" / f"cni-{sandbox}").exists()


async def test_images_as_volumes_and_volumes_of_images(node: CriNode):
    image = pb.ImageSpec(image=VOLUMES)
    mounts = [
        pb.Mount(
            container_path="/whole", image=image, readonly=True, uidMappings=MAPPING, gidMappings=MAPPING
        ),
        pb.Mount(
            readonly=True,
            container_path="/part",
            image=image,
            image_sub_path="data",
            uidMappings=MAPPING,
            gidMappings=MAPPING,
        ),
    ]
    sandbox, container, _ = await launch(node, "sleep", "1000", mounts=mounts, image=VOLUMES)
    script = """cat /whole/data/file /part/file /data/file; echo
        ls -lnd /whole/data/file /part/file /data /data/file
        echo mine > /data/file; echo y > /data/new"""
    lines = await said(node, container, script)
    assert lines[0] == "from the image" * 3
    assert [line.split()[2:4] for line in lines[1:]] == [["0", "0"]] * 4
    volume = node.folder / "root/containers" / container / "volume-0"
    assert {path.stat().st_uid for path in (volume, volume / "new", volume / "file")} == {0}
    assert b"Read-only" in (await node.exec(container, "sh", "-c", "echo x >/whole/new")).stderr
    folder = str(node.folder / "root/containers" / container)
    mounted = [
        line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if folder in line
    ]
    assert sorted(os.path.basename(path) for path in mounted) == ["image-0", "image-1"]
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    assert folder not in Path("/proc/self/mountinfo").read_text()


async def test_sandboxes_that_are_refused(node: CriNode):
    double = [pb.IDMapping(host_id=1000, length=10), pb.IDMapping(host_id=2000, length=10)]
    shifted = [pb.IDMapping(container_id=1, host_id=1000, length=10)]
    for options, words in (
        (userns(double), "uids has 2 mappings"),
        (userns(shifted), "container_id must be 0"),
        (userns([]), "uids has 0 mappings"),
        (userns([], pb.CONTAINER), "mode CONTAINER"),
        (userns([], pb.TARGET), "mode TARGET"),
        (userns(MAPPING, pb.NODE), "mode NODE"),
    ):
        assert words in await refusal(node.run_pod(pod_config(node, options)))
    for name in ("network", "pid", "ipc"):
        options = userns()
        setattr(options, name, pb.NODE)
        assert f"{name} NODE" in await refusal(node.run_pod(pod_config(node, options)))
    found = (await node.runtime.ListPodSandbox(pb.ListPodSandboxRequest())).items
    assert list(found) == []


async def test_containers_that_are_refused(node: CriNode):
    config = pod_config(node)
    sandbox = await node.run_pod(config)
    plain = pb.LinuxContainerConfig()
    plain.security_context.namespace_options.pid = pb.CONTAINER
    assert "userns_options of the container differs" in await refusal(
        node.create(sandbox, config, "true", linux=plain)
    )
    half = [pb.Mount(container_path="/x", host_path="/tmp", uidMappings=MAPPING)]
    assert "mounts: /x has only one" in await refusal(
        node.create(sandbox, config, "true", linux=linux(config), mounts=half)
    )
    both_ways = [pb.Mount(container_path="/x", host_path="/tmp", propagation=pb.PROPAGATION_BIDIRECTIONAL)]
    assert "mount /x: bidirectional" in await refusal(
        node.create(sandbox, config, "true", linux=linux(config), mounts=both_ways)
    )
    assert list((await node.runtime.ListContainers(pb.ListContainersRequest())).containers) == []


async def test_one_pid_namespace_and_low_ids(node: CriNode):
    """As critest asks: no other mode given, so the pod's processes see each other; ids of other users."""
    low = [pb.IDMapping(container_id=0, host_id=1000, length=100000)]
    options = userns(low)
    options.pid = pb.POD
    config = pod_config(node, options)
    sandbox, first = await node.launch_with(config, "sleep", "1234", linux=linux(config))
    second = await node.create(
        sandbox, config, "cat", "/proc/self/uid_map", name="second", linux=linux(config)
    )
    await node.runtime.StartContainer(pb.StartContainerRequest(container_id=second))
    assert (await node.wait_exit(second)).exit_code == 0
    assert [line.split() for line in node.container_log(config, "second")] == [["0", "1000", "100000"]]
    pid = await pid_of(node, first)
    assert owner_of(pid, "pid") == userns_of(pid)
    assert len(await said(node, first, "ls -d /proc/[0-9]*")) == 3  # the pod's init, sleep and this shell


async def test_a_volume_that_cannot_be_mapped_is_named(node: CriNode):
    config = pod_config(node)
    sandbox = await node.run_pod(config)
    mounts = [
        pb.Mount(container_path="/x", host_path="/sys/kernel", uidMappings=MAPPING, gidMappings=MAPPING)
    ]
    container = await node.create(sandbox, config, "true", linux=linux(config), mounts=mounts)
    with pytest.raises(grpc.aio.AioRpcError, match="ID-mapped mount of /sys/kernel at /x"):
        await node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))


async def test_a_privileged_container_has_no_power_over_the_node(node: CriNode):
    config = pod_config(node)
    config.linux.security_context.privileged = True
    _, container = await node.launch_with(config, "sleep", "1000", linux=linux(config, privileged=True))
    script = """(echo x > /proc/sys/kernel/core_pattern) 2>&1; cat /proc/1/root/proc/sys/kernel/hostname
        ip link add dev v0 type veth && echo network; grep CapEff /proc/self/status"""
    lines = await said(node, container, script)
    assert "ermission denied" in lines[0]
    assert lines[2:] == ["network", "CapEff:\t000001ffffffffff"]


async def test_it_lives_through_kill_9(node: CriNode):
    sandbox, container, config = await launch(node, "sh", "-c", "while true; do echo tick; sleep 0.05; done")
    pid = await pid_of(node, container)
    own = userns_of(pid)
    await node.restart()
    assert (await node.status(container)).state == pb.CONTAINER_RUNNING
    again = await node.create(sandbox, config, "sleep", "1000", name="late", linux=linux(config))
    await node.runtime.StartContainer(pb.StartContainerRequest(container_id=again))
    assert userns_of(await pid_of(node, again)) == own
    assert (await said(node, container, "cat /proc/self/uid_map"))[0].split()[1] == str(ROOT)
    await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    await gone(pid)
    assert in_userns(own) == []


async def test_port_forward_and_host_port(node: CriNode):
    ports = [pb.PortMapping(container_port=8080, host_port=18080)]
    sandbox = await node.run_pod(pod_config(node, port_mappings=ports))
    sock = netns.open_socket(node.folder / "netns" / f"cni-{sandbox}", socket.AF_INET, socket.SOCK_STREAM)
    with sock:
        sock.bind(("0.0.0.0", 8080))
        sock.listen()
        sock.settimeout(60)
        request = pb.PortForwardRequest(pod_sandbox_id=sandbox, port=[8080])
        client, writer = await connect((await node.runtime.PortForward(request)).url, "portforward.k8s.io")
        _, stream = await open_pair(client, "1")
        await client.send(stream, b"x")
        await client.wait(lambda: True)
        target, _ = sock.accept()
        assert target.recv(1) == b"x"
        target.close()
        writer.close()
        with socket.create_connection(("127.0.0.1", 18080), timeout=5) as caller:
            target, _ = sock.accept()
            caller.sendall(b"y")
            assert target.recv(1) == b"y"
            target.close()
