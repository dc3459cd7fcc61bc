"""What goes on between the answer to CreateContainer and StartContainer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from crinode import CriNode

from host.cgroups import Cgroups
from proto.cri import runtime_pb2 as pb


def start(node: CriNode, container: str) -> object:
    """StartContainer."""
    return node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))


async def remove_pod(node: CriNode, sandbox: str) -> None:
    """RemovePodSandbox."""
    await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))


class TestFailure:
    async def test_start_says_why_and_the_container_has_ended(self, node: CriNode) -> None:
        config = node.sandbox_config()
        sandbox = await node.run_pod(config)
        linux = pb.LinuxContainerConfig()
        linux.security_context.run_as_username = "nobody-knows-me"
        container = await node.create(sandbox, config, "true", linux=linux)
        with pytest.raises(grpc.aio.AioRpcError, match="unable to find user nobody-knows-me"):
            await start(node, container)
        status = await node.status(container)
        assert (status.state, status.reason, status.exit_code) == (pb.CONTAINER_EXITED, "StartError", 128)
        assert "unable to find user nobody-knows-me" in status.message
        assert status.started_at == 0

    async def test_it_is_told_without_a_start_and_leaves_nothing(self, node: CriNode) -> None:
        config = node.sandbox_config()
        sandbox = await node.run_pod(config)
        container = await node.create(sandbox, config, "true", mounts=[_onto_a_file()])
        status = await node.wait_exit(container)
        assert status.reason == "StartError" and "/etc/passwd" in status.message
        await node.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
        assert not Cgroups().exists(f"{config.linux.cgroup_parent}/{container}")
        folder = node.folder / "state/runtime/sandboxes" / sandbox / "containers"
        assert not any(folder.iterdir())
        await remove_pod(node, sandbox)  # the layer is deleted while nobody waits, but before the pod is gone
        assert not (node.folder / "root/containers" / container).exists()


def _onto_a_file() -> pb.Mount:
    """A folder to be mounted where the image has a file."""
    return pb.Mount(host_path="/usr", container_path="/etc/passwd", readonly=True)


class TestInAHurry:
    async def test_removed_at_once(self, node: CriNode) -> None:
        config = node.sandbox_config()
        sandbox = await node.run_pod(config)
        for _ in range(5):
            container = await node.create(sandbox, config, "sleep", "100")
            await node.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
        await remove_pod(node, sandbox)
        assert not Path(node.folder, "root/containers", container).exists()

    async def test_sandbox_stopped_at_once(self, node: CriNode) -> None:
        for _ in range(5):
            config = node.sandbox_config()
            sandbox = await node.run_pod(config)
            container = await node.create(sandbox, config, "sleep", "100")
            await node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
            assert (await node.status(container)).state == pb.CONTAINER_EXITED
            await remove_pod(node, sandbox)
            assert not Cgroups().exists(config.linux.cgroup_parent + "/" + container)

    async def test_started_twice_at_once(self, node: CriNode) -> None:
        config = node.sandbox_config()
        sandbox = await node.run_pod(config)
        container = await node.create(sandbox, config, "sleep", "100")
        await asyncio.gather(start(node, container), start(node, container))
        assert (await node.status(container)).state == pb.CONTAINER_RUNNING


class TestDaemonKilled:
    @pytest.mark.parametrize("seconds", [0.0, 0.001, 0.004])
    async def test_a_created_container_starts_after_the_restart(self, node: CriNode, seconds: float) -> None:
        config = node.sandbox_config()
        sandbox = await node.run_pod(config)
        container = await node.create(sandbox, config, "sh", "-c", "echo alive; sleep 100")
        await asyncio.sleep(seconds)
        await node.restart()
        assert (await node.status(container)).state == pb.CONTAINER_CREATED
        await start(node, container)
        assert (await node.status(container)).state == pb.CONTAINER_RUNNING
        assert (await node.exec(container, "echo", "hello")).stdout == b"hello\n"
        assert node.container_log(config) == ["alive"]

    async def test_with_an_image_volume(self, node: CriNode) -> None:
        config = node.sandbox_config()
        sandbox = await node.run_pod(config)
        image = pb.ImageSpec(image="registry.test/volumes:1")
        volume = pb.Mount(container_path="/volume", image=image, readonly=True)
        container = await node.create(sandbox, config, "sleep", "100", mounts=[volume])
        await node.restart()
        await start(node, container)
        answer = await node.exec(container, "cat", "/volume/data/file")
        assert answer.stdout == b"from the image"
