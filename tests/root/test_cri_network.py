"""nodelet-cri as the caller of CNI plugins: of those that misbehave, and of the reference ones."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import crileaks
import pytest
from criclient import refused
from crinode import CriNode
from grpc import StatusCode

from deploy.labkit import versions
from deploy.labkit.layout import Layout
from host import netns
from proto.cri import runtime_pb2 as pb

RECORD = """#!/bin/sh
here=$(dirname "$0")
input=$(cat)
name=$(basename "$0")
echo "$CNI_COMMAND $name netns=$CNI_NETNS" >> "$here/calls"
printf '%s' "$input" > "$here/stdin-$name-$CNI_COMMAND"
if [ -e "$here/fail-$name-$CNI_COMMAND" ]; then cat "$here/fail-$name-$CNI_COMMAND"; exit 1; fi
[ $CNI_COMMAND != ADD ] || echo '{"ips": [{"address": "10.9.0.2/24"}]}'
"""


class Plugins:
    """Scripts as plugins, and the configuration that names them, before any other by name."""

    def __init__(self, node: CriNode) -> None:
        self.bin, self._config = node.folder / "bin", node.folder / "net.d" / "05-test.conflist"
        self.bin.mkdir(exist_ok=True)

    def use(self, *plugins: dict[str, object], version: str = "1.0.0") -> None:
        """Put a configuration in force."""
        conflist = {"name": "test", "cniVersion": version, "plugins": plugins}
        new = self._config.with_suffix(".new")
        new.write_text(json.dumps(conflist))
        new.replace(self._config)

    def record(self, *names: str, version: str = "1.0.0", **fields: object) -> None:
        """Use plugins that write down how they are called."""
        for name in names:
            (self.bin / name).write_text(RECORD)
            (self.bin / name).chmod(0o755)
        self.use(*({"type": name, **fields} for name in names), version=version)

    def fail(self, name: str, command: str, output: str) -> Path:
        """From now on a recording plugin prints this and fails; unlink the result to end that."""
        path = self.bin / f"fail-{name}-{command}"
        path.write_text(output)
        return path

    def calls(self) -> list[str]:
        """Command and name of every call so far."""
        return [line.rsplit(" ", 1)[0] for line in self.lines()]

    def lines(self) -> list[str]:
        path = self.bin / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def stdin(self, name: str, command: str) -> dict[str, object]:
        """What a plugin got, the last time."""
        return json.loads((self.bin / f"stdin-{name}-{command}").read_text())

    def remove(self) -> None:
        """Back to the node's own configuration."""
        self._config.unlink(missing_ok=True)
        for path in self.bin.iterdir():
            path.unlink()


@pytest.fixture
async def plugins(node: CriNode) -> Iterator[Plugins]:
    found = Plugins(node)
    yield found
    for path in found.bin.glob("fail-*"):
        path.unlink()
    await node.clean()
    found.remove()


async def network_condition(node: CriNode) -> pb.RuntimeCondition:
    """Type, status, reason and message of NetworkReady."""
    status = (await node.runtime.Status(pb.StatusRequest())).status
    return next(item for item in status.conditions if item.type == "NetworkReady")


async def test_a_failing_plugins_words_reach_the_kubelet_and_nothing_stays(node: CriNode, plugins: Plugins):
    plugins.record("one", "two", "three")
    before = node.picture()
    plugins.fail("two", "ADD", '{"code": 101, "msg": "pool is empty", "details": "10.9.0.0/30"}')
    config = node.sandbox_config()
    code, words = await refused(node.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config)))
    assert code is StatusCode.UNKNOWN
    assert "cni plugin two ADD exited with 1: pool is empty: 10.9.0.0/30" in words
    assert plugins.calls() == ["ADD one", "ADD two", "DEL three", "DEL two", "DEL one"]
    assert crileaks.difference(before, node.picture()) == []


async def test_a_failing_del_is_owed_and_the_pod_has_ended_all_the_same(node: CriNode, plugins: Plugins):
    plugins.record("one", "two")
    sandbox, container, _ = await node.launch("sleep", "1000")
    path = plugins.fail("two", "DEL", "no route to the controller")
    for call, request in (
        (node.runtime.StopPodSandbox, pb.StopPodSandboxRequest(pod_sandbox_id=sandbox)),
        (node.runtime.RemovePodSandbox, pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox)),
    ):
        code, words = await refused(call(request))
        assert (code, "cni plugin two DEL exited with 1" in words) == (StatusCode.UNKNOWN, True)
    assert (await node.status(container)).state == pb.CONTAINER_EXITED
    assert "DEL one" not in plugins.calls(), "its address is kept until the whole chain has let go"
    await node.restart()
    path.unlink()
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    assert plugins.calls()[-2:] == ["DEL two", "DEL one"]
    assert plugins.stdin("one", "DEL")["prevResult"] == {"ips": [{"address": "10.9.0.2/24"}]}


@pytest.mark.parametrize("way", ["unmounted", "deleted"])
async def test_a_namespace_that_is_gone_is_not_given_to_del(node: CriNode, plugins: Plugins, way: str):
    plugins.record("one")
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    path = plugins.lines()[0].rpartition("netns=")[2]
    await node.restart()  # nobody but the supervisor knows the namespace now
    netns.delete(path)
    if way == "unmounted":
        Path(path).touch()
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    assert plugins.lines()[-1] == "DEL one netns="
    Path(path).unlink(missing_ok=True)


async def test_the_configuration_of_a_pod_is_the_one_it_was_made_with(node: CriNode, plugins: Plugins):
    plugins.record("one")
    sandbox = await node.run_pod(node.sandbox_config())
    plugins.record("two")
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    assert plugins.calls() == ["ADD one", "DEL one"]


async def test_a_plugins_own_state_is_in_network_ready(node: CriNode, plugins: Plugins):
    plugins.record("one", version="1.1.0")
    fault = plugins.fail("one", "STATUS", '{"code": 50, "msg": "the controller is away"}')
    condition = await network_condition(node)
    assert (condition.status, condition.reason) == (False, "NetworkPluginNotReady")
    assert "cni plugin one STATUS exited with 1: the controller is away" in condition.message
    fault.unlink()
    assert (await network_condition(node)).status
    assert plugins.stdin("one", "STATUS") == {"type": "one", "name": "test", "cniVersion": "1.1.0"}


async def test_gc_at_start_names_the_pods_there_are(node: CriNode, plugins: Plugins):
    plugins.record("one", version="1.1.0")
    sandbox = await node.run_pod(node.sandbox_config())
    await node.restart()
    valid = [{"containerID": sandbox, "ifname": "eth0"}]
    assert plugins.stdin("one", "GC")["cni.dev/valid-attachments"] == valid


async def test_what_a_pod_asks_for_reaches_the_plugins(node: CriNode, plugins: Plugins):
    asked = ("portMappings", "bandwidth", "dns", "cgroupPath")
    plugins.record("one", capabilities=dict.fromkeys(asked, True))
    config = node.sandbox_config(
        annotations={"kubernetes.io/ingress-bandwidth": "10M"},
        port_mappings=[pb.PortMapping(host_port=80, container_port=8080, host_ip="127.0.0.1")],
    )
    await node.run_pod(config)
    assert plugins.stdin("one", "ADD")["runtimeConfig"] == {
        "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": "127.0.0.1"}],
        "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 1 << 20},
        "dns": {"servers": ["10.96.0.10"], "searches": ["cluster.local"], "options": ["ndots:5"]},
        "cgroupPath": config.linux.cgroup_parent,
    }
    config.metadata.uid, config.annotations["kubernetes.io/ingress-bandwidth"] = "other", "much"
    code, words = await refused(node.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config)))
    assert code is StatusCode.INVALID_ARGUMENT
    assert "kubernetes.io/ingress-bandwidth: 'much'" in words


def reference_plugins(plugins: Plugins, state: Path) -> None:
    """bridge, host-local and portmap, as a stock node has them."""
    for name in ("bridge", "host-local", "portmap"):
        path = Layout().binary(versions.REFERENCE_CNI, name)
        if not path.exists():
            pytest.skip(f"the lab's cache lacks {name} (deploy/lab builds it)")
        shutil.copyfile(path, plugins.bin / name)
        (plugins.bin / name).chmod(0o755)
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": "10.98.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(state),
    }
    plugins.use(
        {"type": "bridge", "bridge": "cni-test0", "isGateway": True, "hairpinMode": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    )


async def test_the_reference_plugins(node: CriNode, plugins: Plugins, tmp_path: Path):
    reference_plugins(plugins, tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = node.sandbox_config(port_mappings=[pb.PortMapping(host_port=port, container_port=8080)])
    sandbox, container = await node.launch_with(
        config, "sh", "-c", "while true; do echo hello | nc -l -p 8080; done"
    )
    asked = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox)
    address = (await node.runtime.PodSandboxStatus(asked)).status.network.ip
    assert address.startswith("10.98.0.")
    assert (tmp_path / "test" / address).exists()
    assert "hello" in await node.inside(container, "nc -w 3 127.0.0.1 8080 </dev/null")
    assert "hello" in await node.inside(container, f"nc -w 3 10.98.0.1 {port} </dev/null")
    await node.restart()
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    assert not (tmp_path / "test" / address).exists()
