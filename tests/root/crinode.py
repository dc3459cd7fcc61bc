"""A real `nodelet-cri` for tests: its own folders, its own cgroup parent, images from a registry beside it.

The test process has left the machine's namespaces already (conftest.py); the daemon inherits that.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from cni.config import render_conflist
from deploy.labkit.images import Entry, build_image
from host import processes
from host.cgroups import Cgroups
from proto.cri import runtime_pb2 as pb
from proto.cri.runtime_pb2_grpc import ImageServiceStub, RuntimeServiceStub

BUSYBOX = "registry.test/busybox:1"
VOLUMES = "registry.test/volumes:1"
_APPLETS = [
    "sh",
    "ls",
    "cat",
    "echo",
    "env",
    "sleep",
    "id",
    "hostname",
    "kill",
    "ip",
    "nc",
    "wget",
    "seq",
    "head",
    "mknod",
]
_UIDS = itertools.count(1)
HANDLERS = ("", "crun", "runc")
"""Our own runtime and the external ones these tests know."""
EXTERNAL = {name: path for name in HANDLERS[1:] if (path := processes.which(name))}


def base_files() -> dict[str, Path | bytes | Entry]:
    """Busybox, two users and a group: what every image of these tests has."""
    files: dict[str, Path | bytes | Entry] = {
        "bin/busybox": Entry(data=Path("/bin/busybox").read_bytes(), mode=0o755),
        "tmp": Entry(directory=True, mode=0o1777),
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nmail:x:8:8:mail:/var/mail:/bin/sh\n",
        "etc/group": b"root:x:0:\nmail:x:8:\nextra:x:50:mail\n",
    }
    return files | {f"bin/{name}": Entry(link="/bin/busybox") for name in _APPLETS}


def build_images(store: Path) -> None:
    """Fill a registry store with the images these tests use."""
    env = {"PATH": "/bin", "FROM": "image"}
    build_image(
        store, "registry.test/busybox", tags=("1",), files=base_files(), cmd=["sleep", "1000"], env=env
    )
    data = {"data/file": b"from the image", "data/link": Entry(link="/etc/passwd")}
    build_image(
        store,
        "registry.test/volumes",
        tags=("1",),
        files=base_files() | data,
        cmd=["sleep", "1000"],
        volumes=["/data"],
    )


class CriNode:
    """One daemon, started and killed at will, and short words for its calls."""

    def __init__(self, folder: Path, *, registry: int = 0) -> None:
        self.folder = folder
        self.socket = folder / "run" / "cri.sock"
        self.cgroup_parent = f"/nodelet-test-{os.getpid()}-{folder.name}"
        self.logs = folder / "logs"
        self.handler = ""
        """What `run_pod` asks for: the runtime's own, or the name of an external one."""
        self._registry = registry
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: aio.Channel | None = None
        self.runtime: Any = None
        self.images: Any = None

    def write_config(self) -> None:
        for name in ("net.d", "registries/_default", "seccomp", "logs", "run"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        conflist = render_conflist(["10.99.0.0/24"], state_dir=str(self.folder / "cni"), masquerade=False)
        (self.folder / "net.d" / "10-nodelet.conflist").write_bytes(conflist)
        text = f'server = "http://127.0.0.1:{self._registry}"\n[host."http://127.0.0.1:{self._registry}"]\n'
        text += 'capabilities = ["pull", "resolve"]\n'
        (self.folder / "registries" / "_default" / "hosts.toml").write_text(text)

    @property
    def arguments(self) -> list[str]:
        folder = self.folder
        return [
            f"--listen=unix://{self.socket}",
            f"--root={folder / 'root'}",
            f"--state={folder / 'state'}",
            f"--cni-conf-dir={folder / 'net.d'}",
            f"--cni-bin-dir={folder / 'bin'}",
            f"--netns-dir={folder / 'netns'}",
            f"--registry-config-dir={folder / 'registries'}",
            f"--seccomp-root={folder / 'seccomp'}",
            f"--cdi-spec-dir={folder / 'cdi'}",
            *(f"--runtime-handler={name}={path}" for name, path in EXTERNAL.items()),
        ]

    def launch_daemon(self) -> None:
        """Start the process."""
        argv = [sys.executable, "-X", "utf8", "-m", "cri.main", *self.arguments]
        with (self.folder / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    async def connect(self) -> None:
        """Wait until the daemon answers."""
        # Not the connection of a channel before: its daemon may have been killed a moment ago.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = aio.insecure_channel(f"unix:{self.socket}", options=options)
        self.runtime, self.images = RuntimeServiceStub(self._channel), ImageServiceStub(self._channel)
        try:
            await self.runtime.Version(pb.VersionRequest(), wait_for_ready=True, timeout=20)
        except aio.AioRpcError as exc:
            raise AssertionError(self.log()) from exc

    async def disconnect(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            await self._channel.close()

    def kill(self, number: int = signal.SIGTERM) -> int:
        """Signal the daemon and wait for its end; its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(20)

    async def restart(self, number: int = signal.SIGKILL) -> None:
        """Kill the daemon and start it again."""
        await self.disconnect()
        self.kill(number)
        self.launch_daemon()
        await self.connect()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What the daemon has written."""
        return (self.folder / "daemon.log").read_text(errors="replace")

    async def clean(self) -> None:
        """Remove every pod."""
        for item in (await self.runtime.ListPodSandbox(pb.ListPodSandboxRequest())).items:
            await self.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=item.id))

    def sandbox_config(self, name: str = "pod", **changes: Any) -> pb.PodSandboxConfig:
        """A pod's configuration as a kubelet would send it."""
        uid = f"{name}-{next(_UIDS)}"
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, namespace="default", uid=uid),
            hostname=name,
            log_directory=str(self.logs / uid),
            labels={"app": name},
            dns_config=pb.DNSConfig(servers=["10.96.0.10"], searches=["cluster.local"], options=["ndots:5"]),
        )
        config.linux.cgroup_parent = f"{self.cgroup_parent}/pod{uid}"
        options = config.linux.security_context.namespace_options
        options.pid = pb.CONTAINER
        config.MergeFrom(pb.PodSandboxConfig(**changes))
        return config

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
        """The status once the container has ended (event stream, then status)."""
        stream = self.runtime.GetContainerEvents(pb.GetEventsRequest(), timeout=20)
        event = asyncio.ensure_future(stream.read())
        while (status := await self.status(container)).state != pb.CONTAINER_EXITED:
            await asyncio.wait({event}, timeout=0.2)  # a read that is cancelled ends the whole stream
            if event.done():
                event = asyncio.ensure_future(stream.read())
        stream.cancel()
        await asyncio.wait({event})
        return status

    async def exec(self, container: str, *command: str, timeout: int = 10) -> pb.ExecSyncResponse:
        """ExecSync."""
        request = pb.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout)
        return await self.runtime.ExecSync(request)

    def container_log(self, config: pb.PodSandboxConfig, name: str = "main") -> list[str]:
        """The message part of each line of a container's log."""
        text = Path(config.log_directory, name, "0.log").read_text(errors="replace")
        return [line.split(" ", 3)[3] for line in text.splitlines()]


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory, throw_away_namespaces: None) -> Iterator[CriNode]:
    """A running node and its registry; nothing is left of them afterwards."""
    folder = tmp_path_factory.mktemp("cri")
    build_images(folder / "registry")
    argv = [
        sys.executable,
        "-m",
        "deploy.labkit.registry",
        f"--root={folder / 'registry'}",
        "--listen=127.0.0.1:0",
    ]
    registry = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert registry.stdout is not None
    node = CriNode(folder, registry=json.loads(registry.stdout.readline())["listening"][0][1])
    node.write_config()
    node.launch_daemon()
    try:
        yield node
    finally:
        node.kill()
        registry.terminate()
        registry.wait(10)
        registry.stdout.close()
        Cgroups().remove(node.cgroup_parent)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def node(daemon: CriNode) -> AsyncIterator[CriNode]:
    """A connection to the node with both images pulled; its pods are removed afterwards."""
    await daemon.connect()
    for name in (BUSYBOX, VOLUMES):
        request = pb.PullImageRequest(image=pb.ImageSpec(image=name))
        if not (await daemon.images.ImageStatus(pb.ImageStatusRequest(image=request.image))).HasField(
            "image"
        ):
            await daemon.images.PullImage(request)
    yield daemon
    await daemon.clean()
    await daemon.disconnect()


@pytest.fixture(params=HANDLERS, ids=lambda name: name or "built-in")
def handler(request: pytest.FixtureRequest, node: CriNode) -> Iterator[str]:
    """The test runs once with each runtime handler; one whose program is not installed is skipped."""
    if request.param and request.param not in EXTERNAL:
        pytest.skip(f"needs {request.param} (Debian package {request.param})")
    node.handler = request.param
    yield request.param
    node.handler = ""


def dial(url: str) -> socket.socket:
    """A connection to a stream address."""
    host, port = url.split("/")[2].split(":")
    return socket.create_connection((host, int(port)), timeout=10)
