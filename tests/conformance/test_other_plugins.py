"""Each runtime with the other's plugins: containerd with nodelet-cni, nodelet-cri with the reference ones."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import counterparts
import pytest
from criclient import CriClient
from test_networking import HELLO, address, free_port, greeting

from cni import launcher
from cni.config import render_conflist
from deploy.labkit import stocknode, versions
from deploy.labkit.layout import Layout
from proto.cri import runtime_pb2 as pb

RANGE = "10.95.0.0/24"
"""Of no runtime's own network, which is in the same namespace."""


def nodelet_plugin(folder: Path) -> Path:
    """nodelet-cni in containerd's folders; the configuration that names it."""
    disk = folder / "disk"
    launcher.install(disk / "opt/cni/bin")
    path = disk / "etc/cni/net.d/05-other.conflist"
    conflist = render_conflist(
        [RANGE], bridge="other0", state_dir=str(folder / "other"), name="other", masquerade=False
    )
    path.with_suffix(".new").write_bytes(conflist)
    return path.with_suffix(".new").rename(path)


def reference_plugins(folder: Path) -> Path:
    """bridge, host-local and portmap in nodelet-cri's folders; the configuration that names them."""
    (folder / "bin").mkdir(exist_ok=True)
    for name in versions.REFERENCE_CNI.programs:
        shutil.copy(Layout().binary(versions.REFERENCE_CNI, name), folder / "bin" / name)
    conflist = (
        json.dumps(stocknode.network(RANGE, flannel=False))
        .replace('"stock"', '"other"')
        .replace("cni0", "other0")
    )
    path = folder / "net.d/05-other.conflist"
    path.write_text(conflist.replace("/var/lib/cni/networks", str(folder / "other")))
    return path


@pytest.fixture
async def other(node: CriClient) -> AsyncIterator[CriClient]:
    """The runtime, once it uses the other's plugins; its own again afterwards."""
    if node.name == "external":
        pytest.skip("where the plugins of an external runtime are is not known")
    if missing := counterparts.missing_for_containerd():
        pytest.skip(f"the lab's cache lacks {', '.join(missing)} (deploy/lab builds them)")
    install = nodelet_plugin if node.name == "containerd" else reference_plugins
    config = install(node.logs.parent)
    try:
        async with asyncio.timeout(20):
            while (
                "other0" not in (await node.runtime.Status(pb.StatusRequest(verbose=True))).info["cniconfig"]
            ):
                await asyncio.sleep(0.05)
        yield node
        await node.clean(of="nodelet-tests")  # containerd disconnects with the configuration in force
    finally:
        config.unlink()


def config_of(node: CriClient) -> Path:
    """The configuration that names the other's plugins."""
    folder = "disk/etc/cni/net.d" if node.name == "containerd" else "net.d"
    return node.logs.parent / folder / "05-other.conflist"


async def use_version(node: CriClient, version: str) -> None:
    """Let the configuration speak this version of the specification, and wait until the runtime does."""
    path = config_of(node)
    conflist = json.loads(path.read_text())
    conflist.pop("cniVersions", None)
    path.with_suffix(".new").write_text(json.dumps(conflist | {"cniVersion": version}))
    path.with_suffix(".new").rename(path)
    async with asyncio.timeout(20):
        while True:
            status = await node.runtime.Status(pb.StatusRequest(verbose=True))
            if re.search(rf'"cniversion\W+{version}"', status.info["cniconfig"], re.IGNORECASE):
                return
            await asyncio.sleep(0.05)


def leases(node: CriClient) -> list[str]:
    """Addresses that are on disk, by either plugin."""
    found = (node.logs.parent / "other").rglob("*")
    return sorted(path.name.split(",")[0] for path in found if path.name.startswith("10.95."))


async def test_pods_have_addresses_and_host_ports(other: CriClient):
    port = free_port()
    mapping = pb.PortMapping(protocol=pb.TCP, container_port=8080, host_port=port)
    config = other.sandbox_config(port_mappings=[mapping])
    first, _ = await other.launch_with(config, "sh", "-c", HELLO)
    there = await address(other, first)
    second, container, _ = await other.launch("sleep", "1000")
    assert there.startswith("10.95.0.")
    assert await greeting(there, 8080) == b"hello\n"
    assert await greeting("127.0.0.1", port) == b"hello\n"
    assert await other.inside(container, f"nc {there} 8080 </dev/null") == "hello"
    assert leases(other) == sorted([there, await address(other, second)])
    for sandbox in (first, second):
        await other.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
    assert leases(other) == []


async def test_every_version_of_the_specification(other: CriClient):
    for version in ("0.3.1", "0.4.0", "1.0.0", "1.1.0"):
        await use_version(other, version)
        sandbox = await other.run_pod(other.sandbox_config())
        assert leases(other) == [await address(other, sandbox)], version
        await other.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
        assert leases(other) == [], version


async def test_ten_pods_at_once(other: CriClient):
    configs = [other.sandbox_config(f"pod{number}") for number in range(10)]
    sandboxes = await asyncio.gather(*(other.run_pod(config) for config in configs))
    found = {await address(other, sandbox) for sandbox in sandboxes}
    assert len(found) == 10
    assert leases(other) == sorted(found)
    await other.clean(of="nodelet-tests")
    assert leases(other) == []
