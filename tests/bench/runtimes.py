"""Two CRI runtimes for a benchmark, each in folders of its own: nodelet-cri, and containerd with runc.

The caller has left the machine's network and mount namespaces; bridges, /run and mounts of both end with it.
Both get the same image from the same registry and a network of one bridge with port mappings.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from cni.config import render_conflist
from deploy.labkit import stocknode, versions
from deploy.labkit.errors import LabError
from deploy.labkit.images import Entry, build_image
from deploy.labkit.layout import Layout
from proto.cri import runtime_pb2 as pb
from proto.cri.runtime_pb2_grpc import ImageServiceStub, RuntimeServiceStub

IMAGE = "registry.test/busybox:1"
_SHELL = Path("/bin/busybox")
_APPLETS = ("sh", "sleep", "true")
_CHECKOUT = Path(__file__).parents[2]
_START_SECONDS = 30.0
_OURS_SUBNET, _STOCK_SUBNET = "10.98.0.0/24", "10.97.0.0/24"


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A running CRI server.

    Attributes:
        name: nodelet-cri or containerd.
        process: the daemon.
        runtime, images: its CRI clients.
    """

    name: str
    process: subprocess.Popen[bytes]
    runtime: Any
    images: Any

    def stop(self) -> None:
        """End the daemon; its pods have been removed."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def pull(self) -> None:
        """Fetch the image."""
        self.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=IMAGE)), timeout=60)


def start_registry(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A registry on loopback with busybox and, for containerd, a pause image; the process and its port."""
    store = folder / "registry"
    shell: dict[str, Path | bytes | Entry] = {
        "bin/busybox": Entry(data=_SHELL.read_bytes(), mode=0o755),
        "tmp": Entry(directory=True, mode=0o1777),
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
    }
    shell |= {f"bin/{name}": Entry(link="/bin/busybox") for name in _APPLETS}
    env = {"PATH": "/bin"}
    build_image(store, "registry.test/busybox", tags=("1",), files=shell, cmd=["sleep", "1000"], env=env)
    name, _, tag = versions.PAUSE_IMAGE.rpartition(":")
    build_image(store, name, tags=(tag,), files=shell, cmd=["/bin/sleep", "1000000"], env=env)
    argv = [sys.executable, "-m", "deploy.labkit.registry", f"--root={store}", "--listen=127.0.0.1:0"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=_CHECKOUT)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["listening"][0][1]


def _mirrors(folder: Path, registry: int) -> Path:
    """A `hosts.toml` that sends every registry's name to ours."""
    default = folder / "registries/_default"
    default.mkdir(parents=True)
    url = f"http://127.0.0.1:{registry}"
    text = f'server = "{url}"\n[host."{url}"]\ncapabilities = ["pull", "resolve"]\n'
    (default / "hosts.toml").write_text(text)
    return default.parent


def _launch(
    name: str, argv: list[str], socket: Path, *, folder: Path, env: Mapping[str, str], cwd: Path
) -> Runtime:
    """Start a daemon and wait until it answers."""
    with (folder / "daemon.log").open("ab") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **env}, cwd=cwd
        )
    channel = grpc.insecure_channel(f"unix:{socket}")
    started = Runtime(
        name=name, process=process, runtime=RuntimeServiceStub(channel), images=ImageServiceStub(channel)
    )
    try:
        started.runtime.Version(pb.VersionRequest(), wait_for_ready=True, timeout=_START_SECONDS)
    except grpc.RpcError:
        started.stop()
        words = (folder / "daemon.log").read_text(errors="replace")[-2000:]
        raise LabError(f"{name} does not answer: {words}") from None
    return started


def start_ours(
    folder: Path, *, registry: int, checkout: Path = _CHECKOUT, subnet: str = _OURS_SUBNET
) -> Runtime:
    """nodelet-cri of a checkout."""
    folder.mkdir(parents=True)
    run = Path("/run", folder.name)
    conf = folder / "net.d"
    conf.mkdir()
    (conf / "10-nodelet.conflist").write_bytes(
        render_conflist([subnet], state_dir=str(run / "cni"), bridge=f"br-{folder.name}"[:15])
    )
    settings = {
        "listen": f"unix://{run / 'cri.sock'}",
        "root": folder / "root",
        "state": run / "state",
        "cni-conf-dir": conf,
        "cni-bin-dir": folder / "bin",
        "netns-dir": run / "netns",
        "registry-config-dir": _mirrors(folder, registry),
        "seccomp-root": folder / "seccomp",
    }
    argv = [sys.executable, "-X", "utf8", "-m", "cri.main", *(f"--{k}={v}" for k, v in settings.items())]
    env = {"PYTHONPATH": str(checkout)}
    return _launch("nodelet-cri", argv, run / "cri.sock", folder=folder, env=env, cwd=checkout)


def stock_is_built(lab: Layout) -> bool:
    """Whether the lab's cache has containerd, runc and the reference plugins."""
    projects = (versions.CONTAINERD_RUNTIME, versions.RUNC_RUNTIME, versions.REFERENCE_CNI)
    return all(lab.binary(project, name).exists() for project in projects for name in project.programs)


def start_stock(folder: Path, *, registry: int, lab: Layout) -> Runtime:
    """containerd, configured as on the lab's stock node but for its folders."""
    folder.mkdir(parents=True)
    disk = folder / "disk"
    hosts = (_mirrors(folder, registry) / "_default/hosts.toml").read_text()
    (disk / "etc/kubernetes").mkdir(parents=True)
    stocknode.install_runtime(lab, disk, hosts)
    stocknode.set_pod_range(disk, _STOCK_SUBNET, flannel=False)
    config = disk / "etc/containerd/config.toml"
    text = config.read_text()
    for there in ("/var/lib/containerd", "/etc/containerd/certs.d", "/opt/cni/bin", "/etc/cni/net.d"):
        text = text.replace(f'"{there}"', f'"{disk}{there}"')
    config.write_text(text)
    containerd, runc = lab.binary(versions.CONTAINERD_RUNTIME), lab.binary(versions.RUNC_RUNTIME)
    path = f"{containerd.parent}:{runc.parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    argv = [str(containerd), "--config", str(config)]
    socket = Path(stocknode.SOCKET.removeprefix("unix://"))
    return _launch("containerd", argv, socket, folder=folder, env={"PATH": path}, cwd=folder)


def start_sides(
    folder: Path, lab: Layout, *, stack: ExitStack, say: Callable[[str], None]
) -> tuple[Runtime, ...]:
    """A registry, ours, and containerd when the lab's cache has it; `stack` ends them."""
    registry, port = start_registry(folder)
    stack.callback(registry.wait)
    stack.callback(registry.terminate)
    sides = [start_ours(folder / "ours", registry=port)]
    stack.callback(sides[0].stop)
    if stock_is_built(lab):
        sides.append(start_stock(folder / "stock", registry=port, lab=lab))
        stack.callback(sides[1].stop)
    else:
        say("containerd and runc are not in the lab's cache: a lab with a stock node builds them")
    return tuple(sides)
