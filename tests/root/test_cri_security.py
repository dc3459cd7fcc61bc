"""The security context as it comes over CRI: what of it reaches the kernel, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from crinode import CriNode

from cri.runtime.identity import held_capabilities
from cri.runtime.security import capability_mask
from host import syscalls
from proto.cri import runtime_pb2 as pb


def linux(**security: object) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**security))


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A mount of its own, private at first."""
    path = tmp_path / "volume"
    path.mkdir()
    syscalls.mount("tmpfs", str(path), "tmpfs")
    syscalls.mount("", str(path), "", syscalls.MS_PRIVATE)
    yield path
    syscalls.umount(str(path), syscalls.MNT_DETACH)


@pytest.mark.parametrize(
    ("kind", "propagation", "words"),
    [
        ("private", pb.PROPAGATION_PRIVATE, ""),
        ("private", pb.PROPAGATION_HOST_TO_CONTAINER, "is not a shared or slave mount"),
        ("private", pb.PROPAGATION_BIDIRECTIONAL, "is not a shared mount"),
        ("slave", pb.PROPAGATION_HOST_TO_CONTAINER, ""),
        ("slave", pb.PROPAGATION_BIDIRECTIONAL, "is not a shared mount"),
        ("shared", pb.PROPAGATION_HOST_TO_CONTAINER, ""),
        ("shared", pb.PROPAGATION_BIDIRECTIONAL, ""),
    ],
)
async def test_propagation_needs_a_mount_that_propagates(
    node: CriNode, volume: Path, kind: str, propagation: int, words: str
) -> None:
    if kind != "private":
        syscalls.mount("", str(volume), "", syscalls.MS_SHARED)
    if kind == "slave":
        (volume / "peer").mkdir()
        syscalls.mount(str(volume), str(volume / "peer"), "", syscalls.MS_BIND)
        volume = volume / "peer"
        syscalls.mount("", str(volume), "", syscalls.MS_SLAVE)
    (volume / "sub").mkdir()
    link = volume.parent / "link" if kind != "slave" else volume.parent.parent / "link"
    os.symlink(volume / "sub", link)
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    mount = pb.Mount(host_path=str(link), container_path="/data", propagation=propagation)
    created = node.create(sandbox, config, "id", mounts=[mount])
    if not words:
        await node.runtime.StartContainer(pb.StartContainerRequest(container_id=await created))
        return
    with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
        await created
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert not (await node.runtime.ListContainers(pb.ListContainersRequest())).containers


async def test_small_files_with_and_without_a_read_only_root(node: CriNode) -> None:
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    script = "for name in hosts hostname resolv.conf; do (echo >> /etc/$name) 2>/dev/null && echo $name; done"
    for name, readonly in (("open", False), ("closed", True)):
        more = {"linux": linux(readonly_rootfs=readonly), "name": name}
        container = await node.create(sandbox, config, "sh", "-c", f"cat /etc/hosts; {script}", **more)
        await node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
        await node.wait_exit(container)
    hosts = Path("/etc/hosts").read_text().splitlines()
    assert node.container_log(config, "open") == [*hosts, "hosts", "hostname", "resolv.conf"]
    assert node.container_log(config, "closed") == [*hosts, ""]


async def test_an_ordinary_user_may_ping_and_listen_on_a_low_port(node: CriNode) -> None:
    script = "cat /proc/sys/net/ipv4/ping_group_range; nc -l -p 80 & sleep 0.2; kill -9 $! && echo listened"
    asked = pb.Capability(drop_capabilities=["ALL"])
    more = {"linux": linux(run_as_user=pb.Int64Value(value=1000), capabilities=asked)}
    _, container, config = await node.launch("sh", "-c", script, **more)
    await node.wait_exit(container)
    assert [line.split() for line in node.container_log(config)] == [["0", "2147483647"], ["listened"]]


async def test_a_pid_namespace_of_its_own_in_a_pod_that_shares_one(node: CriNode) -> None:
    config = node.sandbox_config()
    config.linux.security_context.namespace_options.pid = pb.POD
    sandbox = await node.run_pod(config)
    for name, mode in (("with", pb.POD), ("without", pb.CONTAINER)):
        more = {"linux": linux(namespace_options=pb.NamespaceOption(pid=mode)), "name": name}
        container = await node.create(sandbox, config, "sh", "-c", "echo $$", **more)
        await node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
        await node.wait_exit(container)
    assert int(node.container_log(config, "with")[0]) > 1
    assert node.container_log(config, "without") == ["1"]


async def test_a_missing_capability_of_the_daemon_is_told_once(node: CriNode) -> None:
    lacks = not held_capabilities() & capability_mask(["SYS_RESOURCE"])
    await node.launch("sleep", "1000")
    await node.restart()
    starts = node.log().count(" serves unix://")
    assert node.log().count("no CAP_SYS_RESOURCE") == (starts if lacks else 0)


async def test_a_device_of_a_vendor_brings_what_its_file_says(node: CriNode) -> None:
    (node.folder / "cdi").mkdir(exist_ok=True)
    (node.folder / "cdi/file").write_text("of the vendor")
    text = """
        cdiVersion: 0.6.0
        kind: vendor.test/thing
        devices:
        - name: one
          containerEdits:
            env: [THING=one]
            deviceNodes: [{path: /dev/thing, hostPath: /dev/zero, permissions: r}]
            mounts: [{hostPath: FOLDER/file, containerPath: /etc/thing, options: [ro, bind]}]
            additionalGids: [4444]
        - name: two
          containerEdits: {hooks: [{hookName: createContainer, path: /bin/true}]}"""
    (node.folder / "cdi/thing.yaml").write_text(text.replace("FOLDER", str(node.folder / "cdi")))
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    script = "echo $THING; cat /etc/thing; echo; head -c 3 /dev/thing; echo; id -G; (echo > /etc/thing) 2>&1"
    more = {"CDI_devices": [pb.CDIDevice(name="vendor.test/thing=one")]}
    container = await node.create(sandbox, config, "sh", "-c", script, **more)
    await node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
    await node.wait_exit(container)
    lines = node.container_log(config)
    assert lines[:4] == ["one", "of the vendor", "\0\0\0", "0 4444"]
    assert lines[4].endswith("Read-only file system")
    for name, code, words in (
        ("two", grpc.StatusCode.UNIMPLEMENTED, "hooks"),
        ("three", grpc.StatusCode.INVALID_ARGUMENT, "not known"),
    ):
        more = {"CDI_devices": [pb.CDIDevice(name=f"vendor.test/thing={name}")], "name": name}
        with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
            await node.create(sandbox, config, "true", **more)
        assert caught.value.code() is code
