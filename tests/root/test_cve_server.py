"""What went wrong in CRI servers, logs and state folders elsewhere, tried on ours.

CVE-2026-47262, CVE-2025-4437   TestUserFiles              a passwd file without end, or none at all
CVE-2022-4318                   TestUserFiles              a line feed in HOME
CVE-2024-5154                   TestUserFiles              the image's /etc leads to the node
CVE-2021-41103, CVE-2024-25621  TestWhatOthersSee          state folders that others can enter
CVE-2020-15257                  TestWhatOthersSee          sockets that a pod on the node's network reaches
CVE-2019-13509, CVE-2020-8565   TestTwoDaemons             secrets in debug logs
CVE-2021-25743                  TestWhatOthersSee          control characters towards a terminal
CVE-2022-31030, CVE-2022-23471  test_runtime_exec, test_cri_streams
CVE-2025-0750, CVE-2026-53489   test_runtime_logs
stream tokens                   tests/unit/test_streaming
"""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from crinode import CriNode
from grpc.aio import AioRpcError

from host.cgroups import Cgroups
from proto.cri import runtime_pb2 as pb

CANARY = "canary-5f1e0b"


def on_the_node(node: CriNode) -> pb.PodSandboxConfig:
    """A pod on the node's network."""
    config = node.sandbox_config()
    config.linux.security_context.namespace_options.network = pb.NODE
    return config


class TestUserFiles:
    @pytest.mark.parametrize("kind", ["device", "fifo", "sparse"])
    async def test_a_passwd_file_that_is_none(self, node: CriNode, tmp_path: Path, kind: str) -> None:
        source = tmp_path / "passwd"
        if kind == "device":
            source = Path("/dev/zero")
        elif kind == "fifo":
            os.mkfifo(source)
        else:
            source.touch()
            os.truncate(source, 4 << 30)
        config = node.sandbox_config()
        sandbox = await node.run_pod(config)
        mount = pb.Mount(host_path=str(source), container_path="/etc/passwd", readonly=True)
        container = await node.create(sandbox, config, "true", mounts=[mount])
        with pytest.raises(AioRpcError, match="read /etc/passwd of the image"):
            await node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))

    async def test_a_line_feed_in_home_adds_no_user(self, node: CriNode) -> None:
        home = pb.KeyValue(key="HOME", value=b"/x\nroot2:x:0:0::/:/bin/sh")
        _, container, _ = await node.launch("sleep", "1000", envs=[home])
        assert b"root2" not in (await node.exec(container, "cat", "/etc/passwd")).stdout
        assert b"root2" in (await node.exec(container, "env")).stdout, "the process has it, and nobody else"

    async def test_a_link_in_a_volume_leads_nowhere_else(self, node: CriNode, tmp_path: Path) -> None:
        """A folder on the way to a mount is a link to a path that the node has and the image has not."""
        outside, shared = tmp_path / "outside", tmp_path / "shared"
        outside.mkdir()
        shared.mkdir()
        (shared / "etc").symlink_to(outside)
        config = node.sandbox_config()
        sandbox = await node.run_pod(config)
        mounts = [
            pb.Mount(host_path=str(shared), container_path="/shared"),
            pb.Mount(host_path="/bin/busybox", container_path="/shared/etc/made"),
        ]
        container = await node.create(sandbox, config, "true", mounts=mounts)
        with pytest.raises(AioRpcError, match="/shared/etc/made: no such file"):
            await node.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
        assert list(outside.iterdir()) == []


class TestWhatOthersSee:
    async def test_folders_and_sockets_are_roots_alone(self, node: CriNode) -> None:
        await node.launch("sleep", "1000")
        for name in ("root", "state"):
            assert stat.S_IMODE((node.folder / name).stat().st_mode) == 0o700
        assert stat.S_IMODE(node.socket.stat().st_mode) == 0o600
        sockets = [path for path in (node.folder / "state").rglob("*") if path.is_socket()]
        assert sockets
        for path in sockets:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    async def test_no_socket_is_abstract(self, node: CriNode) -> None:
        _, container = await node.launch_with(on_the_node(node), "sleep", "1000")
        names = (await node.exec(container, "cat", "/proc/net/unix")).stdout.decode().splitlines()
        assert len(names) > 1
        assert [name for name in names if name.split()[-1].startswith("@")] == []

    async def test_our_tables_hold_no_control_characters(self, node: CriNode) -> None:
        config = on_the_node(node)
        config.metadata.name = "pod\x1b]0;owned\x07\x9b"
        await node.run_pod(config)
        argv = [sys.executable, "-m", "cri.main", "ps", f"--endpoint=unix://{node.socket}"]
        done = await asyncio.to_thread(
            subprocess.run, argv, capture_output=True, text=True, timeout=30, check=True
        )
        assert "owned" in done.stdout
        control = [letter for letter in done.stdout if ord(letter) < 32 or 127 <= ord(letter) < 160]
        assert set(control) == {"\n"}


class TestTwoDaemons:
    @pytest.fixture
    async def second(self, node: CriNode, tmp_path: Path) -> AsyncIterator[CriNode]:
        """Another daemon with folders of its own, which tells all it can."""
        other = CriNode(tmp_path / "second", registry=node._registry)
        other.write_config()
        (other.folder / "cri.yaml").write_text("logLevel: debug\n")
        other.launch_daemon(arguments=[f"--config={other.folder / 'cri.yaml'}"])
        await other.connect()
        await other.pull("registry.test/busybox:1")
        yield other
        await other.clean()
        await other.disconnect()
        other.kill()
        Cgroups().remove(other.cgroup_parent)

    async def test_one_knows_nothing_of_the_other(self, node: CriNode, second: CriNode) -> None:
        _, first_container = await node.launch_with(on_the_node(node), "sleep", "1000")
        _, container = await second.launch_with(on_the_node(second), "sleep", "1000")
        listed = (await second.runtime.ListContainers(pb.ListContainersRequest())).containers
        assert [item.id for item in listed] == [container]
        await second.restart()
        assert (await node.status(first_container)).state == pb.CONTAINER_RUNNING
        assert (await second.status(container)).state == pb.CONTAINER_RUNNING

    async def test_secrets_are_not_in_its_log(self, second: CriNode) -> None:
        config = on_the_node(second)
        secret = pb.KeyValue(key="PASSWORD", value=CANARY.encode())
        sandbox, _ = await second.launch_with(config, "sleep", "1000", envs=[secret])
        with pytest.raises(AioRpcError):
            container = await second.create(sandbox, config, "/nothing", envs=[secret], name="bad")
            await second.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
        auth = pb.AuthConfig(username="u", password=CANARY, identity_token=CANARY)
        image = pb.ImageSpec(image="registry.test/missing:1")
        with pytest.raises(AioRpcError) as caught:
            await second.images.PullImage(pb.PullImageRequest(image=image, auth=auth))
        assert CANARY not in str(caught.value)
        assert "DEBUG" in second.log()
        assert CANARY not in second.log()
