"""Pods that ask for devices of plugins: admission, the container's configuration, and their end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from podkit import Node, deleted, make_pod, running

from agent.api.structs import Container, Pod
from agent.devices.grants import DeviceError, Grants
from proto.cri import runtime_pb2 as pb


class Devices:
    """`agent.pods.ports.DevicePort` with one device."""

    def __init__(self) -> None:
        self.holders: list[str] = []
        self.problem = ""
        self.released: list[str] = []

    def reserve(self, pod: Pod) -> str:
        """The device, once."""
        if self.holders:
            return "requested number of devices unavailable for example.com/x. Requested: 1, Available: 0"
        self.holders.append(pod.metadata.uid)
        return ""

    async def prepare(self, pod: Pod, container: Container) -> Grants:
        """What comes with it."""
        if self.problem:
            raise DeviceError(self.problem)
        return Grants(
            envs={"DEVICE": "x", "OWN": "plugin's"},
            devices=(pb.Device(container_path="/dev/x", host_path="/dev/null", permissions="rw"),),
            mounts=(pb.Mount(container_path="/lib/x", host_path="/opt/x", readonly=True),),
            cdi_devices=("vendor/class=x",),
            annotations={"example.com/x": "1"},
        )

    def release(self, uid: str) -> None:
        """It is free again."""
        self.released.append(uid)


def asking(name: str = "web") -> Any:
    container = {"name": "app", "image": "busybox", "env": [{"name": "OWN", "value": "pod's"}]}
    return make_pod(metadata={"name": name, "uid": name}, spec={"containers": [container]})


async def test_the_container_gets_what_comes_with_its_devices(tmp_path: Path) -> None:
    devices = Devices()
    async with running(Node(tmp_path, devices=devices)) as node:
        await node.put(asking())
        config = node.cri.config(node.cri.containers()[0].id)
        assert [(d.container_path, d.host_path, d.permissions) for d in config.devices] == [
            ("/dev/x", "/dev/null", "rw")
        ]
        assert ("/lib/x", "/opt/x", True) in [
            (m.container_path, m.host_path, m.readonly) for m in config.mounts
        ]
        assert [each.name for each in config.CDI_devices] == ["vendor/class=x"]
        assert config.annotations["example.com/x"] == "1"
        variables = {each.key: each.value for each in config.envs}
        assert (variables["DEVICE"], variables["OWN"]) == (b"x", b"pod's")
        await node.put(deleted(asking()))
        await node.advance(60)
        assert node.manager.over("web") and devices.released == []
        node.manager.remove(asking())
        await node.settle()
        assert devices.released == ["web"]


async def test_a_pod_for_which_there_is_none_is_refused_as_by_kubelet(tmp_path: Path) -> None:
    async with running(Node(tmp_path, devices=Devices())) as node:
        await node.put(asking("first"))
        await node.put(asking("second"))
        status = node.pod("second").status
        assert (status.phase, status.reason) == ("Failed", "UnexpectedAdmissionError")
        assert status.message == (
            "Pod was rejected: Allocate failed due to requested number of devices unavailable for "
            "example.com/x. Requested: 1, Available: 0, which is unexpected"
        )
        assert node.manager.over("second") and not node.manager.over("first")
        assert not node.manager.over("nobody knows")


async def test_a_plugin_in_trouble_holds_the_container_and_is_named(tmp_path: Path) -> None:
    devices = Devices()
    devices.problem = "device plugin of example.com/x (x.sock): Allocate: out of order"
    async with running(Node(tmp_path, devices=devices)) as node:
        await node.put(asking())
        waiting = node.state().state.waiting
        assert (waiting.reason, waiting.message) == ("CreateContainerConfigError", devices.problem)
        devices.problem = ""
        await node.advance(5)
        assert node.phase() == "Running"
