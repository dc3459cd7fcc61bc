"""A client for tests of any CRI runtime: a connection and short words for its calls."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from proto.cri import runtime_pb2 as pb
from proto.cri.runtime_pb2_grpc import ImageServiceStub, RuntimeServiceStub

BUSYBOX = "registry.test/busybox:1"
_UIDS = itertools.count(1)


class CriClient:
    """What a test asks a runtime for. The pods it makes are below `cgroup_parent`, their logs in `logs`."""

    def __init__(self, socket: Path, *, name: str, cgroup_parent: str, logs: Path) -> None:
        self.socket, self.name = socket, name
        self.cgroup_parent, self.logs = cgroup_parent, logs
        self.handler = ""
        """What `run_pod` asks for: the runtime's own, or the name of an external one."""
        self._channel: aio.Channel | None = None
        self.runtime: Any = None
        self.images: Any = None

    async def connect(self) -> None:
        """Wait until the runtime answers."""
        # Not the connection of a channel before: its daemon may have been killed a moment ago.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = aio.insecure_channel(f"unix:{self.socket}", options=options)
        self.runtime, self.images = RuntimeServiceStub(self._channel), ImageServiceStub(self._channel)
        try:
            await self.runtime.Version(pb.VersionRequest(), wait_for_ready=True, timeout=120)
        except aio.AioRpcError as exc:
            raise AssertionError(self.log()) from exc

    @property
    def channel(self) -> aio.Channel:
        """The connection, for calls that no stub makes."""
        assert self._channel is not None
        return self._channel

    async def disconnect(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            await self._channel.close()

    def log(self) -> str:
        """What the runtime has written, where that is known."""
        return f"{self.name} does not answer on {self.socket}"

    async def pull(self, *names: str) -> None:
        """Bring images here that are not here yet."""
        for name in names:
            image = pb.ImageSpec(image=name)
            if not (await self.images.ImageStatus(pb.ImageStatusRequest(image=image))).HasField("image"):
                await self.images.PullImage(pb.PullImageRequest(image=image))

    async def clean(self, **labels: str) -> None:
        """Remove every pod, or those with these labels."""
        asked = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector=labels))
        for item in (await self.runtime.ListPodSandbox(asked)).items:
            await self.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=item.id))

    def sandbox_config(self, name: str = "pod", **changes: Any) -> pb.PodSandboxConfig:
        """A pod's configuration as a kubelet would send it."""
        uid = f"{name}-{next(_UIDS)}"
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, namespace="default", uid=uid),
            hostname=name,
            log_directory=str(self.logs / uid),
            labels={"app": name, "of": "nodelet-tests"},
            dns_config=pb.DNSConfig(servers=["10.96.0.10"], searches=["cluster.local"], options=["ndots:5"]),
        )
        config.linux.cgroup_parent = self.pod_cgroup(uid)
        options = config.linux.security_context.namespace_options
        options.pid = pb.CONTAINER
        config.MergeFrom(pb.PodSandboxConfig(**changes))
        return config

    def pod_cgroup(self, uid: str) -> str:
        """A pod's cgroup_parent, as a kubelet would name it."""
        return f"{self.cgroup_parent}/pod{uid}"

    async def run_pod(self, config: pb.PodSandboxConfig) -> str:
        """RunPodSandbox."""
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=self.handler)
        return (await self.runtime.RunPodSandbox(request)).pod_sandbox_id

    async def create(
        self, sandbox: str, config: pb.PodSandboxConfig, *command: str, image: str = BUSYBOX, **fields: Any
    ) -> str:
        """CreateContainer."""
        name = fields.pop("name", "main")
        container = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name, attempt=fields.pop("attempt", 0)),
            image=pb.ImageSpec(image=image),
            command=command,
            log_path=f"{name}/0.log",
            **fields,
        )
        security = container.linux.security_context
        if not security.HasField("namespace_options"):  # a kubelet gives them to pod and container alike
            security.namespace_options.CopyFrom(config.linux.security_context.namespace_options)
        request = pb.CreateContainerRequest(pod_sandbox_id=sandbox, config=container, sandbox_config=config)
        return (await self.runtime.CreateContainer(request)).container_id

    async def launch(self, *command: str, **fields: Any) -> tuple[str, str, pb.PodSandboxConfig]:
        """A pod with one started container: sandbox id, container id, pod configuration."""
        config = self.sandbox_config()
        return *await self.launch_with(config, *command, **fields), config

    async def launch_with(self, config: pb.PodSandboxConfig, *command: str, **fields: Any) -> tuple[str, str]:
        """The same for a given pod configuration: sandbox id, container id."""
        sandbox = await self.run_pod(config)
        container = await self.create(sandbox, config, *command, **fields)
        await self.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
        return sandbox, container

    async def status(self, container: str) -> pb.ContainerStatus:
        """ContainerStatus."""
        return (await self.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container))).status

    async def wait_exit(self, container: str) -> pb.ContainerStatus:
        """The status once the container has ended."""
        async with asyncio.timeout(60):
            while (status := await self.status(container)).state != pb.CONTAINER_EXITED:
                await asyncio.sleep(0.02)
        return status

    async def exec(self, container: str, *command: str, timeout: int = 60) -> pb.ExecSyncResponse:
        """ExecSync."""
        request = pb.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout)
        return await self.runtime.ExecSync(request)

    async def inside(self, container: str, line: str) -> str:
        """What a line of shell prints in a container, both streams, without white space around it."""
        answer = await self.exec(container, "sh", "-c", line)
        return (answer.stdout + answer.stderr).decode(errors="replace").strip()

    def container_log(self, config: pb.PodSandboxConfig, name: str = "main") -> list[str]:
        """The message part of each line of a container's log."""
        text = Path(config.log_directory, name, "0.log").read_text(errors="replace")
        return [line.split(" ", 3)[3] for line in text.splitlines()]


async def refused(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    """The code and the words of a call that must fail."""
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""
