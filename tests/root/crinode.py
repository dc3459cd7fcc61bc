"""A real `nodelet-cri` for tests: its own folders, its own cgroup parent, images from a registry beside it.

The test process has left the machine's namespaces already (conftest.py); the daemon inherits that. Where
systemd is process 1 all of it works with systemd's cgroups as well: NODELET_TEST_CGROUP_DRIVER=systemd.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import crileaks
import pytest
from criclient import BUSYBOX, CriClient

from cni.config import render_conflist
from deploy.labkit.images import Entry, build_image
from host import failpoints, processes
from host.cgroups import units
from host.cgroups.driver import load as load_cgroups
from proto.cri import runtime_pb2 as pb

__all__ = ["BUSYBOX", "VOLUMES", "CriNode", "build_images", "daemon", "node", "running", "serving"]

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


DRIVER = os.environ.get("NODELET_TEST_CGROUP_DRIVER", "cgroupfs")
"""The cgroup driver of every node here."""


class CriNode(CriClient):
    """One daemon, started and killed at will."""

    def __init__(self, folder: Path, *, registry: int = 0) -> None:
        name = f"nodelet-test-{os.getpid()}-{folder.name}"
        super().__init__(
            folder / "run" / "cri.sock",
            name="nodelet-cri",
            cgroup_parent=units.slice_path([name]) if DRIVER == "systemd" else f"/{name}",
            logs=folder / "logs",
        )
        self.folder = folder
        self._registry = registry
        self._process: subprocess.Popen[bytes] | None = None

    def write_config(self) -> None:
        """Network, mirrors and folders."""
        for name in ("net.d", "registries/_default", "seccomp", "logs", "run"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        conflist = render_conflist(["10.99.0.0/24"], state_dir=str(self.folder / "cni"), masquerade=False)
        (self.folder / "net.d" / "10-nodelet.conflist").write_bytes(conflist)
        text = f'server = "http://127.0.0.1:{self._registry}"\n[host."http://127.0.0.1:{self._registry}"]\n'
        text += 'capabilities = ["pull", "resolve"]\n'
        (self.folder / "registries" / "_default" / "hosts.toml").write_text(text)

    def pod_cgroup(self, uid: str) -> str:
        """With systemd a slice's name and no more, as a kubelet gives it."""
        if DRIVER != "systemd":
            return super().pod_cgroup(uid)
        top = units.unit_of(self.cgroup_parent).removesuffix(".slice")
        return units.unit_of(units.slice_path([top, f"pod{uid}"]))

    def cgroup_of(self, config: pb.PodSandboxConfig, container: str) -> str:
        """A container's cgroup."""
        parent = config.linux.cgroup_parent
        if DRIVER == "systemd":
            return f"{units.expand_slice(parent)}/{units.scope_name(container)}"
        return f"{parent}/{container}"

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
            f"--cgroup-driver={DRIVER}",
            *(f"--runtime-handler={name}={path}" for name, path in EXTERNAL.items()),
        ]

    def launch_daemon(self, failpoint: str = "", *, arguments: Sequence[str] = ()) -> None:
        """Start the process, armed with a fail point (see host/failpoints.py), with further arguments."""
        argv = [sys.executable, "-X", "utf8", "-m", "cri.main", *self.arguments, *arguments]
        env = os.environ | {failpoints.VARIABLE: failpoint}
        with (self.folder / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)

    def kill(self, number: int = signal.SIGTERM) -> int:
        """Signal the daemon and wait for its end; its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(20)

    async def restart(self, number: int = signal.SIGKILL, *, failpoint: str = "") -> None:
        """Kill the daemon and start it again."""
        self.kill(number)
        await self.revive(failpoint=failpoint)

    async def revive(self, *, failpoint: str = "", answers: bool = True) -> None:
        """Start the daemon again after its end; without `answers` it is not waited for."""
        self.wait_end()
        await self.disconnect()
        self.launch_daemon(failpoint)
        if answers:
            await self.connect()

    def wait_end(self) -> None:
        """Wait until the daemon has ended."""
        assert self._process is not None
        self._process.wait(20)

    @property
    def exit_status(self) -> int | None:
        """Of the daemon, once it has ended."""
        assert self._process is not None
        return self._process.returncode

    def has_ended(self) -> bool:
        """Whether the daemon has ended, give or take the moment its socket needs to tell."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(0.1)
        return self._process.returncode is not None

    def picture(self) -> crileaks.Picture:
        """What there is of its pods on this machine."""
        return crileaks.take(self.folder, self.cgroup_parent, daemon=self.pid)

    async def left_over(self, before: crileaks.Picture) -> list[str]:
        """What is there beyond a picture of before, once what goes in the background has gone."""
        with suppress(TimeoutError):
            async with asyncio.timeout(30):
                while found := crileaks.difference(before, self.picture().without_descriptors()):
                    await asyncio.sleep(0.2)
        return found

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What the daemon has written."""
        return (self.folder / "daemon.log").read_text(errors="replace")

    def traceback(self, *, since: int = 0) -> str:
        """The first traceback in its log, from that character on, with what is around it; empty: none."""
        before, mark, after = self.log()[since:].partition("Traceback")
        return f"{before[-600:]}{mark}{after[:6000]}" if mark else ""


@contextmanager
def serving(store: Path) -> Iterator[int]:
    """The lab's registry over a store, as a mirror of every registry; its port on loopback."""
    argv = [sys.executable, "-m", "deploy.labkit.registry", f"--root={store}", "--listen=127.0.0.1:0"]
    registry = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert registry.stdout is not None
    try:
        yield json.loads(registry.stdout.readline())["listening"][0][1]
    finally:
        registry.terminate()
        registry.wait(60)
        registry.stdout.close()


@contextmanager
def running(folder: Path, *, registry: int) -> Iterator[CriNode]:
    """A daemon with all it has below `folder`; nothing is left of it afterwards."""
    node = CriNode(folder, registry=registry)
    node.write_config()
    node.launch_daemon()
    try:
        yield node
    finally:
        node.kill()
        load_cgroups(DRIVER).remove(node.cgroup_parent)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory, throw_away_namespaces: None) -> Iterator[CriNode]:
    """A running node and its registry."""
    folder = tmp_path_factory.mktemp("cri")
    build_images(folder / "registry")
    with serving(folder / "registry") as registry, running(folder, registry=registry) as node:
        yield node


@pytest.fixture
async def bare_node(daemon: CriNode) -> AsyncIterator[CriNode]:
    """A connection to the node, whatever images it has; its pods are removed afterwards."""
    await daemon.connect()
    yield daemon
    await daemon.clean()
    await daemon.disconnect()


@pytest.fixture
async def node(daemon: CriNode) -> AsyncIterator[CriNode]:
    """A connection to the node with both images pulled; its pods are removed afterwards."""
    await daemon.connect()
    await daemon.pull(BUSYBOX, VOLUMES)
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
